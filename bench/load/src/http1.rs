//! HTTP/1.1 as bytes: the head of a response and where its body ends. No sockets here.

use crate::failure::{Class, Failure};

const MAX_HEADERS: usize = 96;
/// A response head longer than this is refused.
pub const MAX_HEAD: usize = 64 * 1024;

/// What the head of a response says.
#[derive(Debug)]
pub struct Head {
    pub status: u16,
    pub version: Option<String>,
    /// The server will close the connection after this response.
    pub close: bool,
    pub body: Body,
    /// Length of the head in bytes.
    pub length: usize,
}

/// How the end of a response's body is known, and how far it has come.
#[derive(Debug)]
pub enum Body {
    Length(u64),
    Chunked(Chunks),
    UntilClose,
}

/// Reads a head, `None` when more bytes are needed.
pub fn parse_head(bytes: &[u8], version_header: &str) -> Result<Option<Head>, Failure> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() >= MAX_HEAD => {
            return Err(malformed("response head too long"))
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(malformed(&format!("response head: {error}"))),
    };
    let status = response.code.unwrap_or(0);
    let mut close = response.version == Some(0);
    let mut version = None;
    let mut declared = None;
    let mut chunked = false;
    for header in response.headers.iter() {
        let name = header.name;
        if name.eq_ignore_ascii_case("content-length") {
            declared = Some(parse_length(header.value)?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = has_token(header.value, "chunked");
        } else if name.eq_ignore_ascii_case("connection") {
            close = has_token(header.value, "close")
                || (close && !has_token(header.value, "keep-alive"));
        } else if name.eq_ignore_ascii_case(version_header) {
            version = Some(String::from_utf8_lossy(header.value).into_owned());
        }
    }
    // RFC 9112, section 6.3: these have no body whatever the headers say, and chunked wins over a length.
    let body = if status < 200 || status == 204 || status == 304 {
        Body::Length(0)
    } else if chunked {
        Body::Chunked(Chunks::default())
    } else {
        declared.map_or(Body::UntilClose, Body::Length)
    };
    Ok(Some(Head {
        status,
        version,
        close: close || matches!(body, Body::UntilClose),
        body,
        length,
    }))
}

impl Body {
    /// Takes what belongs to the body from the front of `bytes` and says how much that was.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<usize, Failure> {
        match self {
            Body::Length(left) => {
                let taken = bytes
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                Ok(taken)
            }
            Body::Chunked(chunks) => chunks.feed(bytes),
            Body::UntilClose => Ok(bytes.len()),
        }
    }

    pub fn is_complete(&self) -> bool {
        match self {
            Body::Length(left) => *left == 0,
            Body::Chunked(chunks) => matches!(chunks.state, ChunkState::Done),
            Body::UntilClose => false,
        }
    }
}

/// Decoder of the chunked transfer coding (RFC 9112, section 7.1).
#[derive(Debug, Default)]
pub struct Chunks {
    state: ChunkState,
    /// Chunks with data that have come whole.
    pub count: u64,
}

#[derive(Debug)]
enum ChunkState {
    Size { value: u64, digits: u8 },
    Extension(u64),
    SizeEnd(u64),
    Data(u64),
    DataEnd,
    DataEndLf,
    TrailerStart,
    Trailer,
    LastLf,
    Done,
}

impl Default for ChunkState {
    fn default() -> Self {
        ChunkState::Size {
            value: 0,
            digits: 0,
        }
    }
}

impl Chunks {
    fn feed(&mut self, bytes: &[u8]) -> Result<usize, Failure> {
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            let (state, remaining) = match self.state {
                ChunkState::Done => break,
                ChunkState::Data(left) => {
                    let taken = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let (_, after) = rest.split_at(taken);
                    match left - taken as u64 {
                        0 => (ChunkState::DataEnd, after),
                        left => (ChunkState::Data(left), after),
                    }
                }
                ref state => (next_state(state, byte)?, after),
            };
            if matches!(state, ChunkState::DataEnd) {
                self.count += 1;
            }
            self.state = state;
            rest = remaining;
        }
        Ok(bytes.len() - rest.len())
    }
}

fn next_state(state: &ChunkState, byte: u8) -> Result<ChunkState, Failure> {
    Ok(match (state, byte) {
        (ChunkState::Size { value, digits }, _) if byte.is_ascii_hexdigit() && *digits < 15 => {
            let digit = u64::from((byte as char).to_digit(16).unwrap_or(0));
            ChunkState::Size {
                value: value * 16 + digit,
                digits: digits + 1,
            }
        }
        (ChunkState::Size { value, digits: 1.. }, b'\r') => ChunkState::SizeEnd(*value),
        (ChunkState::Size { value, digits: 1.. }, b';' | b' ' | b'\t') => {
            ChunkState::Extension(*value)
        }
        (ChunkState::Extension(size), b'\r') => ChunkState::SizeEnd(*size),
        (ChunkState::Extension(size), _) if byte != b'\n' => ChunkState::Extension(*size),
        (ChunkState::SizeEnd(0), b'\n') => ChunkState::TrailerStart,
        (ChunkState::SizeEnd(size), b'\n') => ChunkState::Data(*size),
        (ChunkState::DataEnd, b'\r') => ChunkState::DataEndLf,
        (ChunkState::DataEndLf, b'\n') => ChunkState::default(),
        (ChunkState::TrailerStart, b'\r') => ChunkState::LastLf,
        (ChunkState::Trailer, b'\n') => ChunkState::TrailerStart,
        (ChunkState::TrailerStart | ChunkState::Trailer, _) => ChunkState::Trailer,
        (ChunkState::LastLf, b'\n') => ChunkState::Done,
        _ => return Err(malformed("chunked coding broken")),
    })
}

fn parse_length(value: &[u8]) -> Result<u64, Failure> {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .ok_or_else(|| malformed("content-length is not a number"))
}

fn has_token(value: &[u8], token: &str) -> bool {
    value
        .split(|&byte| byte == b',')
        .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

fn malformed(message: &str) -> Failure {
    Failure::new(Class::Other, message)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b"4\r\nwiki\r\nA;name=x\r\n0123456789\r\n0\r\nsum: 1\r\n\r\nNEXT";

    #[test]
    fn chunks_end_at_the_same_byte_however_they_are_cut() {
        let whole = STREAM.len() - 4;
        for cut in 0..=STREAM.len() {
            let mut body = Body::Chunked(Chunks::default());
            let (first, second) = STREAM.split_at(cut);
            let mut taken = body.feed(first).unwrap();
            if taken == first.len() {
                taken += body.feed(second).unwrap();
            }
            assert!(body.is_complete(), "cut at {cut}");
            assert_eq!(taken, whole, "cut at {cut}");
        }
    }

    #[test]
    fn every_shorter_stream_is_incomplete() {
        for cut in 0..STREAM.len() - 4 {
            let mut body = Body::Chunked(Chunks::default());
            body.feed(&STREAM[..cut]).unwrap();
            assert!(!body.is_complete(), "cut at {cut}");
        }
    }

    #[test]
    fn broken_chunks_are_refused() {
        for bytes in [
            &b"xyz\r\n"[..],
            b"\r\n",
            b"2\r\nabc",
            b"1\r\na\rb",
            b"fffffffffffffffff\r\n",
        ] {
            let mut body = Body::Chunked(Chunks::default());
            assert_eq!(body.feed(bytes).unwrap_err().class, Class::Other);
        }
    }

    #[test]
    fn the_head_says_status_version_and_framing() {
        let bytes =
            b"HTTP/1.1 200 OK\r\nX-Version: 0.2.0\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
        let head = parse_head(bytes, "x-version").unwrap().unwrap();
        assert_eq!((head.status, head.close), (200, true));
        assert_eq!(head.version.as_deref(), Some("0.2.0"));
        assert_eq!(&bytes[head.length..], b"hello");
        for cut in 0..head.length {
            assert!(parse_head(&bytes[..cut], "x-version").unwrap().is_none());
        }
    }

    #[test]
    fn keep_alive_is_the_default_of_http_1_1_only() {
        let close = |text: &str| parse_head(text.as_bytes(), "v").unwrap().unwrap().close;
        assert!(!close("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
        assert!(close("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n"));
        assert!(!close(
            "HTTP/1.0 200 OK\r\nconnection: Keep-Alive\r\ncontent-length: 0\r\n\r\n"
        ));
        assert!(
            close("HTTP/1.1 200 OK\r\n\r\n"),
            "only the end of the connection ends this body"
        );
        assert!(!close("HTTP/1.1 204 No Content\r\n\r\n"));
    }
}
