//! The inflated bytes of a gzip file. One thread reads and digests, one inflates, a third takes what comes out and
//! counts it: inflating takes most of the time, and does not have to wait for the rest.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::mem;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};

use super::{Limits, CHUNK};
use crate::error::Unsafe;

/// A buffer that was used before, so that memory for it is not mapped again.
fn buffer(recycled: &Receiver<Vec<u8>>) -> Vec<u8> {
    let mut buffer = recycled.try_recv().unwrap_or_default();
    buffer.clear();
    buffer.reserve(CHUNK);
    buffer
}

fn give_back(buffer: Vec<u8>, giving: &SyncSender<Vec<u8>>) {
    match giving.try_send(buffer) {
        Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
    }
}

/// Reads the file and digests it. `None` when nobody wanted the rest.
pub fn read<R: Read>(
    mut source: R,
    blocks: SyncSender<io::Result<Vec<u8>>>,
    recycled: Receiver<Vec<u8>>,
) -> Option<[u8; 32]> {
    let mut sha256 = Sha256::new();
    loop {
        let mut block = buffer(&recycled);
        let read = source.by_ref().take(CHUNK as u64).read_to_end(&mut block);
        if let Err(error) = read {
            drop(blocks.send(Err(error)));
            return None;
        }
        if block.is_empty() {
            return Some(sha256.finalize().into());
        }
        sha256.update(&block);
        blocks.send(Ok(block)).ok()?;
    }
}

/// The blocks of the file as one stream.
struct Blocks {
    received: Receiver<io::Result<Vec<u8>>>,
    giving: SyncSender<Vec<u8>>,
    block: Vec<u8>,
    offset: usize,
    consumed: u64,
}

impl BufRead for Blocks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.offset >= self.block.len() {
            let block = match self.received.recv() {
                Ok(block) => block?,
                Err(_end) => Vec::new(),
            };
            give_back(mem::replace(&mut self.block, block), &self.giving);
            self.offset = 0;
            self.consumed += self.block.len() as u64;
        }
        Ok(self.block.get(self.offset..).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        self.offset += count;
    }
}

impl Read for Blocks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

pub struct Chunk {
    bytes: Vec<u8>,
    /// Compressed bytes read so far.
    consumed: u64,
}

/// Each further gzip member has to begin where the last one ended: anything else behind it is an error of the
/// decoder.
pub fn inflate(
    received: Receiver<io::Result<Vec<u8>>>,
    giving: SyncSender<Vec<u8>>,
    chunks: SyncSender<Chunk>,
    recycled: Receiver<Vec<u8>>,
) -> io::Result<()> {
    let mut gzip = MultiGzDecoder::new(Blocks {
        received,
        giving,
        block: Vec::new(),
        offset: 0,
        consumed: 0,
    });

    loop {
        let mut bytes = buffer(&recycled);
        gzip.by_ref().take(CHUNK as u64).read_to_end(&mut bytes)?;
        let consumed = gzip.get_ref().consumed;
        if bytes.is_empty() || chunks.send(Chunk { bytes, consumed }).is_err() {
            return Ok(());
        }
    }
}

/// The inflated bytes as they arrive, up to the limits.
pub struct Stream {
    chunks: Receiver<Chunk>,
    giving: SyncSender<Vec<u8>>,
    bytes: Vec<u8>,
    offset: usize,
    pub total: u64,
    limits: Limits,
    /// Why reading was stopped. Beside the I/O error, since the tar reader rewords that.
    pub refused: Rc<Cell<Option<Unsafe>>>,
}

impl Stream {
    pub fn new(chunks: Receiver<Chunk>, giving: SyncSender<Vec<u8>>, limits: Limits) -> Self {
        Stream {
            chunks,
            giving,
            bytes: Vec::new(),
            offset: 0,
            total: 0,
            limits,
            refused: Rc::default(),
        }
    }

    /// False at the end of the stream.
    fn next_chunk(&mut self) -> io::Result<bool> {
        let Ok(chunk) = self.chunks.recv() else {
            return Ok(false);
        };
        give_back(mem::replace(&mut self.bytes, chunk.bytes), &self.giving);
        self.offset = 0;
        self.total += self.bytes.len() as u64;

        let limits = &self.limits;
        let refused = if self.total > limits.max_bytes {
            Some(Unsafe::TooLarge)
        } else if self.total > limits.ratio_from
            && self.total / limits.max_ratio.max(1) > chunk.consumed
        {
            Some(Unsafe::Ratio)
        } else {
            None
        };
        match refused {
            None => Ok(true),
            Some(_) => {
                self.refused.set(refused);
                Err(io::Error::other("over the limits"))
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.offset >= self.bytes.len() && !self.next_chunk()? {
            return Ok(0);
        }
        let mut rest = self.bytes.get(self.offset..).unwrap_or_default();
        let count = rest.read(buffer)?;
        self.offset += count;
        Ok(count)
    }
}
