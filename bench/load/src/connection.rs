//! One HTTP/1.1 connection: opening it, and exchanges on it with every end told apart. It never retries.

use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::time::Instant;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout_at;

use crate::failure::{Class, Failure};
use crate::http1::{self, Body, Head};
use crate::socket::{self, Sources};

const FIRST_BUFFER: usize = 8 * 1024;

/// A whole response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub version: Option<String>,
    /// The server closes the connection now.
    pub close: bool,
    pub chunked: bool,
    pub chunks: u64,
    pub bytes: u64,
    /// When the connection was begun.
    pub opened: Instant,
    pub local: Option<SocketAddr>,
    pub reused: bool,
}

/// What a look at an idle connection shows.
#[derive(Debug, PartialEq, Eq)]
pub enum Idle {
    Open,
    Closed,
    Reset,
}

pub struct Connection {
    stream: TcpStream,
    opened: Instant,
    local: Option<SocketAddr>,
    exchanges: u64,
}

impl Connection {
    pub async fn open(
        target: SocketAddr,
        sources: &Sources,
        deadline: Instant,
    ) -> Result<Self, Failure> {
        let opened = Instant::now();
        let (stream, local) =
            socket::begin_connect(target, sources).map_err(|error| Failure::connecting(&error))?;
        let established = async {
            // Writable means decided, for good or ill.
            stream.writable().await?;
            stream.take_error()?.map_or(Ok(()), Err)
        };
        within(deadline, "connect", async {
            established
                .await
                .map_err(|error: io::Error| Failure::connecting(&error))
        })
        .await
        .map_err(|failure| failure.on(local, false))?;
        Ok(Connection {
            stream,
            opened,
            local,
            exchanges: 0,
        })
    }

    pub fn opened(&self) -> Instant {
        self.opened
    }

    pub fn local(&self) -> Option<SocketAddr> {
        self.local
    }

    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Whether the server has already ended this connection, as far as this machine was told. The kernel is asked: what
    /// the runtime knows of a socket is as old as its last poll, which on a busy machine is milliseconds.
    pub fn idle(&self) -> Idle {
        match SockRef::from(&self.stream).peek(&mut [MaybeUninit::uninit()]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Idle::Open,
            Ok(0) => Idle::Closed,
            Ok(_) => Idle::Reset,
            Err(_) => Idle::Reset,
        }
    }

    /// One request and its response, until `deadline`.
    pub async fn exchange(
        &mut self,
        request: &[u8],
        buffer: &mut Buffer,
        deadline: Instant,
    ) -> Result<Response, Failure> {
        self.send(request, deadline).await?;
        self.receive(buffer, deadline).await
    }

    pub async fn send(&mut self, bytes: &[u8], deadline: Instant) -> Result<(), Failure> {
        let (local, reused) = (self.local, self.exchanges > 0);
        within(deadline, "write", async {
            self.stream
                .write_all(bytes)
                .await
                .map_err(|error| Failure::writing(&error))
        })
        .await
        .map_err(|failure| failure.on(local, reused))
    }

    pub async fn receive(
        &mut self,
        buffer: &mut Buffer,
        deadline: Instant,
    ) -> Result<Response, Failure> {
        let (local, reused) = (self.local, self.exchanges > 0);
        let mut received = 0;
        let result = timeout_at(deadline.into(), self.read(buffer, &mut received)).await;
        let (head, bytes) = result
            .unwrap_or_else(|_| {
                Err(Failure::timed_out(format!(
                    "{received} bytes of the response"
                )))
            })
            .map_err(|failure| failure.on(local, reused))?;
        self.exchanges += 1;
        Ok(Response {
            status: head.status,
            version: head.version,
            close: head.close,
            chunked: matches!(head.body, Body::Chunked(_)),
            chunks: match head.body {
                Body::Chunked(chunks) => chunks.count,
                Body::Length(_) | Body::UntilClose => 0,
            },
            bytes,
            opened: self.opened,
            local,
            reused,
        })
    }

    async fn read(
        &mut self,
        buffer: &mut Buffer,
        received: &mut u64,
    ) -> Result<(Head, u64), Failure> {
        buffer.clear();
        let mut head = loop {
            if self.fill(buffer, received).await? == 0 {
                return Err(Failure::ended(*received));
            }
            if let Some(head) = next_head(buffer)? {
                break head;
            }
        };
        loop {
            let taken = head.body.feed(buffer.filled())?;
            buffer.consume(taken);
            if head.body.is_complete() {
                break;
            }
            if self.fill(buffer, received).await? == 0 {
                match head.body {
                    Body::UntilClose => break,
                    Body::Length(_) | Body::Chunked(_) => return Err(Failure::ended(*received)),
                }
            }
        }
        if buffer.filled().is_empty() {
            Ok((head, *received))
        } else {
            Err(Failure::new(Class::Other, "bytes after the response"))
        }
    }

    async fn fill(&mut self, buffer: &mut Buffer, received: &mut u64) -> Result<usize, Failure> {
        let count = self
            .stream
            .read(buffer.space())
            .await
            .map_err(|error| Failure::reading(&error, *received))?;
        buffer.end += count;
        *received += count as u64;
        Ok(count)
    }
}

/// The next final head in the buffer; interim ones (1xx) before it are passed over.
fn next_head(buffer: &mut Buffer) -> Result<Option<Head>, Failure> {
    while let Some(head) = http1::parse_head(buffer.filled(), &buffer.version_header)? {
        buffer.consume(head.length);
        if head.status >= 200 {
            return Ok(Some(head));
        }
    }
    Ok(None)
}

/// Where a worker reads its responses to; kept from one request to the next.
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    version_header: String,
}

impl Buffer {
    pub fn new(version_header: &str) -> Self {
        Buffer {
            bytes: vec![0; FIRST_BUFFER],
            start: 0,
            end: 0,
            version_header: version_header.to_owned(),
        }
    }

    fn clear(&mut self) {
        self.start = 0;
        self.end = 0;
    }

    fn filled(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        if self.start == self.end {
            self.clear();
        }
    }

    /// Room for more; only a head that is not whole yet makes the buffer grow, and `parse_head` limits that.
    fn space(&mut self) -> &mut [u8] {
        if self.end == self.bytes.len() {
            self.bytes.resize(self.bytes.len() * 2, 0);
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }
}

/// Runs one step of an exchange, which fails as a timeout when it is not over by `deadline`.
pub async fn within<T>(
    deadline: Instant,
    step: &str,
    future: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    timeout_at(deadline.into(), future)
        .await
        .unwrap_or_else(|_| Err(Failure::timed_out(step)))
}
