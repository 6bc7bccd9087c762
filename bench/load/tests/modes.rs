//! What each mode does when all is well, and how a run is bounded, marked and ended.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::*;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{accept, WebSocket};

#[test]
fn connect_opens_a_connection_for_each_request() {
    let report = run(answering(OK), &["--requests", "200"]);
    assert_eq!(number(&report["succeeded"]), 200);
    assert_eq!(number(&report["connections"]), 200);
    assert_eq!(number(&report["versions"]["1"]["responses"]), 200);
    assert_eq!(report["stopped_by"], "requests");
}

#[test]
fn keepalive_keeps_its_connections() {
    let report = run(
        answering(OK),
        &[
            "--mode",
            "keepalive",
            "--concurrency",
            "5",
            "--requests",
            "500",
        ],
    );
    assert_eq!(number(&report["succeeded"]), 500);
    assert_eq!(number(&report["connections"]), 5);
}

#[test]
fn keepalive_leaves_a_connection_when_it_is_told_to() {
    let address = serve(|mut stream, _| {
        for response in [OK, OK_CLOSE] {
            if read_request(&mut stream).is_some() {
                stream.write_all(response.as_bytes()).unwrap();
            }
        }
    });
    let report = run(
        address,
        &[
            "--mode",
            "keepalive",
            "--concurrency",
            "1",
            "--requests",
            "20",
        ],
    );
    assert_eq!(number(&report["succeeded"]), 20);
    assert_eq!(number(&report["modes"]["keepalive"]["server_closes"]), 10);
    assert_eq!(number(&report["connections"]), 10);
}

#[test]
fn a_connection_closed_while_idle_costs_no_request() {
    let address = serve(|mut stream, _| {
        if read_request(&mut stream).is_some() {
            stream.write_all(OK.as_bytes()).unwrap();
        }
    });
    let report = run(
        address,
        &[
            "--mode",
            "keepalive",
            "--concurrency",
            "1",
            "--requests",
            "20",
            "--rate",
            "50",
        ],
    );
    assert_eq!(number(&report["succeeded"]), 20, "{report}");
    assert_eq!(number(&report["modes"]["keepalive"]["idle_closes"]), 19);
}

#[test]
fn stream_reads_to_the_terminator() {
    let address = serve(|mut stream, _| {
        if read_request(&mut stream).is_some() {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                .unwrap();
            for _ in 0..5 {
                stream.write_all(b"4\r\nwiki\r\n").unwrap();
                thread::sleep(Duration::from_millis(20));
            }
            stream.write_all(b"0\r\n\r\n").unwrap();
        }
    });
    let report = run(address, &["--mode", "stream", "--requests", "10"]);
    assert_eq!(number(&report["succeeded"]), 10, "{report}");
    assert_eq!(number(&report["modes"]["stream"]["chunks"]), 50);
    let latency = &report["modes"]["stream"]["latency_ms"]["outside"];
    assert!(latency["p50"].as_f64().unwrap() >= 80.0, "{latency}");
}

#[test]
fn upload_sends_its_body_slowly_and_whole() {
    let address = serve(|mut stream, _| {
        let started = Instant::now();
        if let Some((head, length)) = read_request(&mut stream) {
            let slow = started.elapsed() >= Duration::from_millis(200);
            let whole = head.starts_with("post /up") && length == 10_001;
            let status = if slow && whole { 200 } else { 400 };
            write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n").unwrap();
        }
    });
    let arguments = [
        "--mode",
        "upload,path=/up",
        "--upload-bytes",
        "10001",
        "--upload-ms",
        "300",
        "--requests",
        "8",
    ];
    let report = run(address, &arguments);
    assert_eq!(number(&report["succeeded"]), 8, "{report}");
}

fn echo(stream: TcpStream, messages: usize) -> Option<WebSocket<TcpStream>> {
    let mut socket = accept(stream).ok()?;
    for _ in 0..messages {
        let message = socket.read().ok().filter(|message| message.is_text())?;
        socket.send(message).ok()?;
    }
    Some(socket)
}

const WEBSOCKETS: &[&str] = &[
    "--mode",
    "websocket",
    "--concurrency",
    "2",
    "--echo-ms",
    "10",
    "--requests",
    "40",
];

#[test]
fn a_websocket_comes_back_after_close_code_1012() {
    let address = serve(|stream, _| {
        if let Some(mut socket) = echo(stream, 5) {
            let frame = CloseFrame {
                code: CloseCode::Restart,
                reason: "swap".into(),
            };
            socket.close(Some(frame)).unwrap();
            while socket.read().is_ok() {}
        }
    });
    let report = run(address, WEBSOCKETS);
    let websocket = &report["modes"]["websocket"]["websocket"];
    let closes = number(&websocket["closes"]["1012"]);
    assert!(closes >= 6, "{report}");
    assert_eq!(
        websocket["closes"].as_object().unwrap().len(),
        1,
        "{report}"
    );
    assert!(
        number(&websocket["reconnect_ms"]["count"]) >= closes - 2,
        "{report}"
    );
    assert_eq!(number(&report["failed"]), 0, "{report}");
}

#[test]
fn a_websocket_that_is_cut_is_a_failure() {
    let cut = run(serve(|stream, _| drop(echo(stream, 5))), WEBSOCKETS);
    assert_only(&cut, "partial");
    let closes = &cut["modes"]["websocket"]["websocket"]["closes"];
    assert_eq!(closes["1006"], cut["failed"], "{cut}");

    let address = serve(|stream, _| {
        if let Some(socket) = echo(stream, 5) {
            reset(socket.get_ref().try_clone().unwrap());
        }
    });
    assert_only(&run(address, WEBSOCKETS), "reset");
}

#[test]
fn a_server_without_websockets_is_a_wrong_status() {
    let address = answering("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
    let report = run(
        address,
        &["--mode", "websocket,concurrency=1", "--seconds", "1"],
    );
    assert_only(&report, "wrong_status");
}

#[test]
fn a_stall_counts_against_all_requests_that_were_due_in_it() {
    let stalled = AtomicBool::new(false);
    let address = serve(move |mut stream, number| {
        if read_request(&mut stream).is_some() {
            if number == 20 && !stalled.swap(true, Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(500));
            }
            stream.write_all(OK_CLOSE.as_bytes()).unwrap();
        }
    });
    let report = run(
        address,
        &["--rate", "100", "--concurrency", "1", "--requests", "100"],
    );
    let latency = &report["modes"]["connect"]["latency_ms"]["outside"];
    // 50 requests were due in the stall; a closed loop would have seen one slow answer in 100.
    assert!(latency["p90"].as_f64().unwrap() > 200.0, "{latency}");
    assert!(report["longest_gap_ms"]["outside"].as_f64().unwrap() >= 500.0);
}

#[test]
fn windows_split_the_figures() {
    let slow = std::sync::Arc::new(AtomicBool::new(false));
    let is_slow = std::sync::Arc::clone(&slow);
    let address = serve(move |mut stream, _| {
        if read_request(&mut stream).is_some() {
            if is_slow.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(100));
            }
            stream.write_all(OK_CLOSE.as_bytes()).unwrap();
        }
    });
    let mut load = Load::start(address, "/", &["--rate", "100"]);
    for _ in 0..2 {
        thread::sleep(Duration::from_millis(200));
        load.mark("swap-start");
        slow.store(true, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(300));
        slow.store(false, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(200));
        load.mark("swap-end");
    }
    thread::sleep(Duration::from_millis(200));
    load.mark("stop");
    let report = load.report();
    let latency = &report["modes"]["connect"]["latency_ms"];
    assert!(
        latency["inside"]["p50"].as_f64().unwrap() >= 100.0,
        "{report}"
    );
    assert!(
        latency["outside"]["p90"].as_f64().unwrap() < 100.0,
        "{report}"
    );
    assert_eq!(number(&report["windows"]["count"]), 2);
    let windows = report["windows"]["list"].as_array().unwrap();
    let inside: u64 = windows
        .iter()
        .map(|window| number(&window["requests"]))
        .sum();
    assert_eq!(inside, number(&latency["inside"]["count"]));
}

#[test]
fn a_run_ends_at_the_end_of_its_input_and_finishes_what_it_began() {
    let address = serve(|mut stream, _| {
        if read_request(&mut stream).is_some() {
            thread::sleep(Duration::from_millis(400));
            stream.write_all(OK_CLOSE.as_bytes()).unwrap();
        }
    });
    let started = Instant::now();
    let mut load = Load::start(
        address,
        "/",
        &["--mode", "long,concurrency=3", "--seconds", "60"],
    );
    thread::sleep(Duration::from_millis(200));
    load.close_input();
    let report = load.report();
    assert_eq!(report["stopped_by"], "eof");
    assert_eq!(number(&report["succeeded"]), 3);
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn the_grace_period_is_bounded() {
    let address = serve(|mut stream, _| while read_request(&mut stream).is_some() {});
    let arguments = [
        "--mode",
        "long,concurrency=3",
        "--seconds",
        "1",
        "--grace-ms",
        "100",
    ];
    let report = run(address, &arguments);
    assert_eq!(report["stopped_by"], "seconds");
    assert_eq!(number(&report["abandoned"]), 3);
    assert_eq!(number(&report["failed"]), 0);
}

#[test]
fn marks_may_come_from_a_file_that_grows() {
    let path = std::env::temp_dir().join(format!("beam_deploy_load_{}", std::process::id()));
    let mut file = fs::File::create(&path).unwrap();
    let control = path.to_str().unwrap();
    let mut load = Load::start(answering(OK), "/", &["--rate", "50", "--control", control]);
    load.close_input();
    for part in ["swap-st", "art\ncutover 1\n", "swap-end\n", "stop\n"] {
        thread::sleep(Duration::from_millis(100));
        file.write_all(part.as_bytes()).unwrap();
    }
    let report = load.report();
    fs::remove_file(&path).unwrap();
    assert_eq!(report["stopped_by"], "stop");
    assert_eq!(number(&report["windows"]["count"]), 1);
    assert_eq!(report["windows"]["list"][0]["version"], "1");
}

#[test]
fn a_target_elsewhere_is_refused() {
    for url in [
        "http://192.0.2.77:4000/",
        "http://example.org/",
        "https://127.0.0.1/",
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_beam_deploy_load"))
            .args(["--url", url])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{url}");
        assert!(
            output.stdout.is_empty() && !output.stderr.is_empty(),
            "{url}"
        );
    }
}
