//! The classes of failure and how an error of the operating system falls into one.

use std::fmt;
use std::io;
use std::net::SocketAddr;

/// What became of a request that was not answered as it should have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The connection was refused.
    Refused,
    /// The connection was reset before one byte of the response had come.
    Reset,
    /// The connection was closed in order before one byte of the response had come.
    Empty,
    /// The connection ended, closed or reset, in the middle of a response.
    Partial,
    Timeout,
    WrongStatus,
    /// A version answered on a connection that was begun after another one had taken over.
    StaleVersion,
    /// Everything else: malformed responses, errors of this client's own machine.
    Other,
}

impl Class {
    pub const ALL: [Class; 8] = [
        Class::Refused,
        Class::Reset,
        Class::Empty,
        Class::Partial,
        Class::Timeout,
        Class::WrongStatus,
        Class::StaleVersion,
        Class::Other,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Class::Refused => "refused",
            Class::Reset => "reset",
            Class::Empty => "empty",
            Class::Partial => "partial",
            Class::Timeout => "timeout",
            Class::WrongStatus => "wrong_status",
            Class::StaleVersion => "stale_version",
            Class::Other => "other",
        }
    }
}

/// How many failures of each class there were.
#[derive(Debug, Clone, Default)]
pub struct Counts([u64; Class::ALL.len()]);

impl Counts {
    pub fn add(&mut self, class: Class) {
        if let Some(count) = self.0.get_mut(class as usize) {
            *count += 1;
        }
    }

    pub fn get(&self, class: Class) -> u64 {
        self.0.get(class as usize).copied().unwrap_or(0)
    }

    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    pub fn merge(&mut self, other: &Counts) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }
}

/// One failed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub class: Class,
    pub message: String,
    /// This client's end of the connection, when there was one.
    pub local: Option<SocketAddr>,
    /// Whether an earlier request had been answered on the same connection.
    pub reused: bool,
}

impl Failure {
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Failure {
            class,
            message: message.into(),
            local: None,
            reused: false,
        }
    }

    pub fn connecting(error: &io::Error) -> Self {
        Failure::new(class_of(error), format!("connect: {error}"))
    }

    pub fn writing(error: &io::Error) -> Self {
        Failure::new(class_of(error), format!("write: {error}"))
    }

    /// The connection failed while the response was awaited, `received` bytes of it having come.
    pub fn reading(error: &io::Error, received: u64) -> Self {
        match class_of(error) {
            Class::Reset if received > 0 => Failure::new(
                Class::Partial,
                format!("read: {error} after {received} bytes of the response"),
            ),
            class => Failure::new(class, format!("read: {error}")),
        }
    }

    /// The connection was closed in order before the response was whole.
    pub fn ended(received: u64) -> Self {
        if received == 0 {
            Failure::new(Class::Empty, "closed before the response")
        } else {
            Failure::new(
                Class::Partial,
                format!("closed after {received} bytes of the response"),
            )
        }
    }

    pub fn timed_out(doing: impl fmt::Display) -> Self {
        Failure::new(Class::Timeout, format!("timeout: {doing}"))
    }

    pub fn on(mut self, local: Option<SocketAddr>, reused: bool) -> Self {
        self.local = local;
        self.reused = reused;
        self
    }
}

fn class_of(error: &io::Error) -> Class {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Class::Refused,
        // EPIPE: the reset had come before the write.
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => Class::Reset,
        io::ErrorKind::TimedOut => Class::Timeout,
        _ => Class::Other,
    }
}
