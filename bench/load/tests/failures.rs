//! Every class of failure, provoked for real.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use support::*;

const FEW: &[&str] = &["--requests", "20", "--concurrency", "4"];

/// A connection per request, each handled so after its request was read.
fn with_each(handler: impl Fn(TcpStream) + Send + Sync + 'static) -> Value {
    let address = serve(move |mut stream, _| {
        if read_request(&mut stream).is_some() {
            handler(stream);
        }
    });
    run(address, FEW)
}

#[test]
fn refused() {
    let report = run(refusing(), FEW);
    assert_only(&report, "refused");
    assert_eq!(number(&report["failed"]), 20);
    assert_eq!(number(&report["connections"]), 0);
}

#[test]
fn reset_before_the_response() {
    let report = with_each(reset);
    assert_only(&report, "reset");
    let example = &report["examples"]["reset"][0];
    assert!(
        example["local"].as_str().unwrap().starts_with("127.0.0."),
        "{example}"
    );
}

#[test]
fn empty() {
    assert_only(&with_each(drop), "empty");
}

#[test]
fn half_a_response() {
    let half = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf";
    let closed = with_each(move |mut stream| stream.write_all(half.as_bytes()).unwrap());
    assert_only(&closed, "partial");
}

#[test]
fn half_a_head_and_then_a_reset() {
    let report = with_each(|mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncont").unwrap();
        // A reset discards what the client has not read yet.
        thread::sleep(Duration::from_millis(50));
        reset(stream);
    });
    assert_only(&report, "partial");
}

#[test]
fn timeout() {
    let address = serve(|mut stream, _| while read_request(&mut stream).is_some() {});
    let report = run(address, &["--requests", "4", "--timeout-ms", "100"]);
    assert_only(&report, "timeout");
}

#[test]
fn a_full_queue_is_a_timeout_of_connect() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let report = run(
        address,
        &[
            "--requests",
            "4",
            "--concurrency",
            "4",
            "--timeout-ms",
            "200",
        ],
    );
    assert_only(&report, "timeout");
    let examples = report["examples"]["timeout"].as_array().unwrap();
    assert!(examples
        .iter()
        .any(|example| example["message"] == "timeout: connect"));
}

#[test]
fn wrong_status() {
    let report = run(
        answering("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"),
        FEW,
    );
    assert_only(&report, "wrong_status");
    assert_eq!(
        report["examples"]["wrong_status"][0]["message"],
        "status 503"
    );
}

#[test]
fn another_status_may_be_the_expected_one() {
    let address = answering("HTTP/1.1 204 No Content\r\n\r\n");
    let report = run(address, &["--requests", "20", "--expect-status", "200,204"]);
    assert_eq!(number(&report["succeeded"]), 20);
}

#[test]
fn malformed() {
    assert_only(&run(answering("SSH-2.0-OpenSSH_9.6\r\n\r\n"), FEW), "other");
}

#[test]
fn a_stream_without_its_terminator() {
    let cut = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nwiki\r\n";
    let address = serve(move |mut stream, _| {
        if read_request(&mut stream).is_some() {
            stream.write_all(cut.as_bytes()).unwrap();
        }
    });
    let report = run(address, &["--mode", "stream", "--requests", "5"]);
    assert_only(&report, "partial");
}

#[test]
fn an_old_version_after_its_cutover() {
    let switched = Arc::new(AtomicBool::new(false));
    let new_serves = Arc::clone(&switched);
    let address = serve(move |mut stream, _| {
        while read_request(&mut stream).is_some() {
            let response = if new_serves.load(Ordering::SeqCst) {
                OK.replace("x-version: 1", "x-version: 2")
            } else {
                OK.to_owned()
            };
            if stream.write_all(response.as_bytes()).is_err() {
                return;
            }
        }
    });
    let mut load = Load::start(
        address,
        "/",
        &[
            "--mode",
            "connect,rate=200",
            "--mode",
            "keepalive,rate=200,concurrency=2",
            "--seconds",
            "30",
        ],
    );
    let pause = || thread::sleep(Duration::from_millis(300));
    pause();
    load.mark("swap-start");
    pause();
    load.mark("cutover 2");
    pause();
    switched.store(true, Ordering::SeqCst);
    pause();
    load.mark("swap-end");
    pause();
    load.mark("stop");
    let report = load.report();
    assert_only(&report, "stale_version");
    let connect = &report["modes"]["connect"];
    let stale = number(&connect["failures"]["stale_version"]);
    assert!((20..=100).contains(&stale), "about 60 in 300 ms: {report}");
    assert_eq!(
        number(&report["modes"]["keepalive"]["failed"]),
        0,
        "its connections are older than the cutover"
    );
    assert_eq!(number(&report["failed_outside"]), 0);
    assert_eq!(report["windows"]["list"][0]["version"], "2");
    assert!(number(&report["versions"]["1"]["responses"]) > number(&report["failed"]));
    assert!(number(&report["versions"]["2"]["outside"]) > 0);
}

#[test]
fn a_kept_connection_that_ends_under_a_request_is_told_from_a_new_one() {
    let address = serve(|mut stream, _| {
        for _ in 0..3 {
            if read_request(&mut stream).is_none() {
                return;
            }
            stream.write_all(OK.as_bytes()).unwrap();
        }
        // The fourth request is read and never answered.
        let _ = read_request(&mut stream);
    });
    let report = run(
        address,
        &[
            "--mode",
            "keepalive",
            "--concurrency",
            "1",
            "--requests",
            "40",
        ],
    );
    assert_only(&report, "empty");
    let mode = &report["modes"]["keepalive"];
    assert_eq!(
        mode["failures_on_reused"]["empty"],
        mode["failures"]["empty"]
    );
    assert_eq!(
        number(&mode["failed"]),
        10,
        "one in four, none repeated: {report}"
    );
    assert_eq!(report["examples"]["empty"][0]["reused"], true);
}
