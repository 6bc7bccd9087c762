//! The ways to load a server. One worker of a mode has at most one request in flight.

mod http;
mod upload;
mod websocket;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::connection::{Buffer, Connection, Response};
use crate::failure::Failure;
use crate::options::{Kind, Mode, Options};
use crate::schedule::{Bounds, Turns};
use crate::socket::Sources;
use crate::stats::Stats;
use crate::target::Target;

/// What all workers of a run share.
pub struct Shared {
    pub options: Options,
    pub target: Target,
    pub sources: Sources,
    pub bounds: Rc<Bounds>,
    pub stats: RefCell<Stats>,
    /// Makes texts of WebSocket messages unique.
    pub messages: Cell<u64>,
}

/// One worker of a mode.
pub struct Worker {
    pub shared: Rc<Shared>,
    pub turns: Rc<Turns>,
    pub mode: Rc<Mode>,
    /// Which mode of the run this is.
    pub index: usize,
    /// Which worker of the mode this is.
    pub number: u32,
}

impl Worker {
    pub async fn run(self) {
        match self.mode.kind {
            Kind::Connect | Kind::Long => http::fresh(self, http::Expect::Any).await,
            Kind::Stream => http::fresh(self, http::Expect::Chunked).await,
            Kind::Keepalive => http::keepalive(self).await,
            Kind::Upload => upload::run(self).await,
            Kind::Websocket => websocket::run(self).await,
        }
    }

    fn buffer(&self) -> Buffer {
        Buffer::new(&self.shared.options.version_header)
    }

    /// A request without a body; `extra` are further header lines, each with its end.
    fn get_request(&self, extra: &str) -> Vec<u8> {
        self.request_head("GET", extra)
    }

    fn request_head(&self, method: &str, extra: &str) -> Vec<u8> {
        format!(
            "{method} {} HTTP/1.1\r\nhost: {}\r\nuser-agent: beam_deploy_load\r\n{extra}\r\n",
            self.mode.path, self.shared.target.authority
        )
        .into_bytes()
    }

    async fn connect(&self, deadline: Instant) -> Result<Connection, Failure> {
        let shared = &self.shared;
        let connection = Connection::open(shared.target.address, &shared.sources, deadline).await?;
        shared
            .stats
            .borrow_mut()
            .update(self.index, |mode| mode.connections += 1);
        Ok(connection)
    }

    /// The next turn, counted as begun.
    async fn next_turn(&self) -> Option<Instant> {
        let scheduled = self.turns.next().await?;
        self.begin();
        Some(scheduled)
    }

    fn begin(&self) {
        self.shared
            .stats
            .borrow_mut()
            .update(self.index, |mode| mode.begun += 1);
    }

    async fn finish(&self, scheduled: Instant, result: Result<Response, Failure>) {
        if !self.record(scheduled, result) {
            self.turns.rest_after_failure().await;
        }
    }

    fn record(&self, scheduled: Instant, result: Result<Response, Failure>) -> bool {
        self.shared
            .stats
            .borrow_mut()
            .finish(self.index, scheduled, result)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.mode.timeout
    }

    fn share_of(&self, time: Duration) -> Duration {
        time * self.number / self.mode.concurrency.max(1)
    }
}
