//! Servers that misbehave in a chosen way, and the load client run against them as a user would.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};

pub const OK: &str = "HTTP/1.1 200 OK\r\nx-version: 1\r\ncontent-length: 2\r\n\r\nok";
pub const OK_CLOSE: &str =
    "HTTP/1.1 200 OK\r\nx-version: 1\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";

/// Gives each connection, with its number, to a thread of its own. The threads end with the test's process.
pub fn serve(handler: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let handler = Arc::new(handler);
    let count = AtomicUsize::new(0);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, handler) = (stream.unwrap(), Arc::clone(&handler));
            let number = count.fetch_add(1, Ordering::Relaxed);
            thread::spawn(move || handler(stream, number));
        }
    });
    address
}

/// A server that answers every request of every connection with these bytes.
pub fn answering(response: &'static str) -> SocketAddr {
    serve(move |mut stream, _| {
        while read_request(&mut stream).is_some() {
            if stream.write_all(response.as_bytes()).is_err() {
                return;
            }
        }
    })
}

/// Reads one request with its body; `None` at the end of the connection.
pub fn read_request(stream: &mut TcpStream) -> Option<(String, usize)> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => bytes.push(byte[0]),
            _ => return None,
        }
    }
    let head = String::from_utf8(bytes).unwrap().to_lowercase();
    let length: usize = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |value| value.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some((head, length))
}

/// Closes with a reset instead of a FIN.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// A port that nobody listens at, and that no other server can get: it is bound for the rest of the test.
pub fn refusing() -> SocketAddr {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    std::mem::forget(socket);
    address
}

pub struct Load {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Load {
    pub fn start(address: SocketAddr, path: &str, arguments: &[&str]) -> Load {
        let mut child = Command::new(env!("CARGO_BIN_EXE_beam_deploy_load"))
            .args(["--url", &format!("http://{address}{path}")])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut load = Load {
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        };
        assert_eq!(load.line(), "ready\n");
        load
    }

    pub fn mark(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    pub fn close_input(&mut self) {
        self.stdin = None;
    }

    pub fn report(mut self) -> Value {
        let report = serde_json::from_str(&self.line()).unwrap();
        assert!(self.child.wait().unwrap().success());
        check_sums(&report);
        report
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Only matters when an assertion failed in between; it has ended otherwise.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One bounded run without marks.
pub fn run(address: SocketAddr, arguments: &[&str]) -> Value {
    Load::start(address, "/", arguments).report()
}

pub fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("not a count: {value}"))
}

/// All failures are of this class.
pub fn assert_only(report: &Value, class: &str) {
    let of_class = number(&report["failures"][class]);
    assert!(of_class > 0, "no {class} in {report}");
    assert_eq!(number(&report["failed"]), of_class, "{report}");
    let example = &report["examples"][class][0];
    assert!(
        example["message"].is_string() && example["at_ms"].is_number(),
        "{report}"
    );
}

/// What is counted twice agrees.
fn check_sums(report: &Value) {
    let sum = |keys: &[&str], of: &Value| keys.iter().map(|key| number(&of[*key])).sum::<u64>();
    let modes = report["modes"].as_object().unwrap();
    for part in modes.values().chain([report]) {
        let classes = part["failures"]
            .as_object()
            .unwrap()
            .values()
            .map(number)
            .sum::<u64>();
        assert_eq!(number(&part["failed"]), classes);
        assert_eq!(
            number(&part["failed"]),
            sum(&["failed_inside", "failed_outside"], part)
        );
    }
    for mode in modes.values() {
        let lost = number(&mode["websocket"]["echoes_lost"]);
        let ended = sum(&["succeeded", "failed", "abandoned"], mode) + lost;
        assert_eq!(number(&mode["requests"]), ended);
        let latency = &mode["latency_ms"];
        let measured = number(&latency["inside"]["count"]) + number(&latency["outside"]["count"]);
        assert_eq!(number(&mode["succeeded"]), measured);
    }
    for key in ["requests", "succeeded", "failed", "connections"] {
        let total = modes.values().map(|mode| number(&mode[key])).sum::<u64>();
        assert_eq!(number(&report[key]), total);
    }
}
