//! Plain requests: a connection for each, or connections that are kept.

use std::time::Instant;

use super::Worker;
use crate::connection::{Buffer, Connection, Idle, Response};
use crate::failure::{Class, Failure};

/// What a response must be beyond whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    Any,
    Chunked,
}

/// A new connection for every request.
pub async fn fresh(worker: Worker, expect: Expect) {
    let request = worker.get_request("connection: close\r\n");
    let mut buffer = worker.buffer();
    while let Some(scheduled) = worker.next_turn().await {
        let result = once(&worker, &request, &mut buffer).await;
        worker
            .finish(
                scheduled,
                result.and_then(|response| check(response, expect)),
            )
            .await;
    }
}

async fn once(worker: &Worker, request: &[u8], buffer: &mut Buffer) -> Result<Response, Failure> {
    let deadline = worker.deadline();
    let mut connection = worker.connect(deadline).await?;
    connection.exchange(request, buffer, deadline).await
}

fn check(response: Response, expect: Expect) -> Result<Response, Failure> {
    // A stream that ends with its connection cannot be told from one that was cut.
    if expect == Expect::Chunked && response.status < 300 && !response.chunked {
        let failure = Failure::new(Class::Other, "the response is not chunked");
        return Err(failure.on(response.local, response.reused));
    }
    Ok(response)
}

/// One connection, opened again when the server has ended it.
pub async fn keepalive(worker: Worker) {
    let request = worker.get_request("");
    let mut buffer = worker.buffer();
    let mut kept = None;
    while let Some(scheduled) = worker.next_turn().await {
        let deadline = worker.deadline();
        let usable = kept
            .take()
            .filter(|connection| still_open(&worker, connection));
        let result = reuse(&worker, usable, &request, &mut buffer, deadline).await;
        let result = result.map(|(connection, response)| {
            if response.close {
                worker
                    .shared
                    .stats
                    .borrow_mut()
                    .update(worker.index, |mode| mode.server_closes += 1);
            } else {
                kept = Some(connection);
            }
            response
        });
        worker.finish(scheduled, result).await;
    }
}

async fn reuse(
    worker: &Worker,
    kept: Option<Connection>,
    request: &[u8],
    buffer: &mut Buffer,
    deadline: Instant,
) -> Result<(Connection, Response), Failure> {
    let mut connection = match kept {
        Some(connection) => connection,
        None => worker.connect(deadline).await?,
    };
    let response = connection.exchange(request, buffer, deadline).await?;
    Ok((connection, response))
}

/// Every client library looks at a pooled connection before it uses it: an end that has already arrived
/// costs no request, and is counted apart from the failures.
fn still_open(worker: &Worker, connection: &Connection) -> bool {
    let idle = connection.idle();
    worker
        .shared
        .stats
        .borrow_mut()
        .update(worker.index, |mode| match idle {
            Idle::Open => {}
            Idle::Closed => mode.idle_closes += 1,
            Idle::Reset => mode.idle_resets += 1,
        });
    idle == Idle::Open
}
