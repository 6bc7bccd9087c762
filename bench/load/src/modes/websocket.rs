//! WebSockets: each sends a message every so often and waits for it to come back; a connection that ends
//! is opened again at once, and the time without one is measured.

use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout, timeout_at};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{client_async, WebSocketStream};

use super::Worker;
use crate::connection::{within, Response};
use crate::failure::{Class, Failure};

/// Pause between two attempts to connect when the first did not succeed.
const RETRY: Duration = Duration::from_millis(50);
/// How long the other side may take for its part of the closing handshake.
const CLOSING: Duration = Duration::from_secs(1);

/// The status of the handshake (`101 Switching Protocols`), under which every echo runs.
const SWITCHING: u16 = 101;

/// Close code of an end without a close frame, and of a close frame without a code (RFC 6455, section 7.4.1).
const NO_FRAME: u16 = 1006;
const NO_CODE: u16 = 1005;

struct Session {
    stream: WebSocketStream<TcpStream>,
    opened: Instant,
    local: Option<SocketAddr>,
    version: Option<String>,
    echoes: u64,
}

/// Why a session is over.
enum End {
    Stopped,
    Closed(u16),
    Failed(Failure),
}

pub async fn run(worker: Worker) {
    let bounds = &worker.shared.bounds;
    let interval = Duration::from_millis(worker.shared.options.echo_ms);
    // Spread over the interval, so that the messages do not go out in bursts.
    let mut due = Instant::now() + worker.share_of(interval);
    let mut lost_at = None;
    while !bounds.is_stopped() {
        let attempt = Instant::now();
        let mut session = match establish(&worker).await {
            Ok(session) => session,
            Err(failure) => {
                worker.begin();
                worker.record(attempt, Err(failure));
                lost_at.get_or_insert(attempt);
                // The end of the load is seen by the loop's condition.
                let _ended = bounds.unless_stopped(tokio::time::sleep(RETRY)).await;
                continue;
            }
        };
        if let Some(lost_at) = lost_at.take() {
            update(&worker, |mode| mode.reconnected(Instant::now() - lost_at));
        }
        match converse(&worker, &mut session, &mut due, interval).await {
            End::Stopped => return close(session.stream).await,
            End::Closed(code) => {
                lost_at = Some(Instant::now());
                update(&worker, |mode| mode.closed(code));
                // Beside the new connection, as nobody waits for a farewell before coming back.
                drop(tokio::task::spawn_local(close(session.stream)));
            }
            End::Failed(failure) => {
                lost_at = Some(Instant::now());
                update(&worker, |mode| mode.closed(NO_FRAME));
                worker.record(attempt_time(due, interval), Err(failure));
            }
        }
    }
}

/// When the message that failed had been due.
fn attempt_time(next_due: Instant, interval: Duration) -> Instant {
    next_due.checked_sub(interval).unwrap_or(next_due)
}

async fn establish(worker: &Worker) -> Result<Session, Failure> {
    let deadline = worker.deadline();
    let connection = worker.connect(deadline).await?;
    let (opened, local) = (connection.opened(), connection.local());
    let url = format!(
        "ws://{}{}",
        worker.shared.target.authority, worker.mode.path
    );
    let handshake = async {
        let request = url
            .into_client_request()
            .map_err(|error| failure_of(&error))?;
        client_async(request, connection.into_stream())
            .await
            .map_err(|error| failure_of(&error))
    };
    let (stream, response) = within(deadline, "websocket handshake", handshake)
        .await
        .map_err(|failure| failure.on(local, false))?;
    let version = response
        .headers()
        .get(worker.shared.options.version_header.as_str())
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    Ok(Session {
        stream,
        opened,
        local,
        version,
        echoes: 0,
    })
}

async fn converse(
    worker: &Worker,
    session: &mut Session,
    due: &mut Instant,
    interval: Duration,
) -> End {
    loop {
        // A close between two messages is to be seen when it comes.
        let event = tokio::select! {
            biased;
            () = worker.shared.bounds.stopped() => return End::Stopped,
            event = session.stream.next() => Some(event),
            () = sleep_until((*due).into()) => None,
        };
        if let Some(event) = event {
            match session.take(event, None) {
                ControlFlow::Continue(_) => continue,
                ControlFlow::Break(End::Failed(failure)) => {
                    worker.begin();
                    return End::Failed(failure);
                }
                ControlFlow::Break(end) => return end,
            }
        }
        if !worker.shared.bounds.take() {
            return End::Stopped;
        }
        worker.begin();
        let scheduled = *due;
        *due = (scheduled + interval).max(Instant::now());
        match echo(worker, session).await {
            ControlFlow::Continue(()) => {
                let response = session.response();
                worker.record(scheduled, Ok(response));
            }
            ControlFlow::Break(end) => {
                if matches!(end, End::Closed(_)) {
                    update(worker, |mode| mode.echoes_lost += 1);
                }
                return end;
            }
        }
    }
}

/// Sends one message and waits until it is back.
async fn echo(worker: &Worker, session: &mut Session) -> ControlFlow<End> {
    let number = worker
        .shared
        .messages
        .replace(worker.shared.messages.get() + 1);
    let id = format!("beam-deploy-load-{number}.");
    let text = worker.shared.options.echo_message.replace("{id}", &id);
    let deadline = worker.deadline();
    let sent = timeout_at(deadline.into(), session.stream.send(Message::text(text))).await;
    match sent {
        Ok(Ok(())) => {}
        // The reason may lie in what the server had sent before: its close frame is read below.
        Ok(Err(_)) => {}
        Err(_) => return session.timed_out("websocket message not sent"),
    }
    loop {
        let Ok(event) = timeout_at(deadline.into(), session.stream.next()).await else {
            return session.timed_out("websocket message not echoed");
        };
        if session.take(event, Some(&id))? {
            session.echoes += 1;
            return ControlFlow::Continue(());
        }
    }
}

impl Session {
    /// Looks at what came: whether it is the awaited text, or else the end of the session.
    fn take(
        &self,
        event: Option<Result<Message, Error>>,
        awaited: Option<&str>,
    ) -> ControlFlow<End, bool> {
        match event {
            Some(Ok(Message::Text(text))) => {
                ControlFlow::Continue(awaited.is_some_and(|id| text.as_str().contains(id)))
            }
            Some(Ok(Message::Close(frame))) => {
                let code = frame.map_or(NO_CODE, |frame| frame.code.into());
                ControlFlow::Break(End::Closed(code))
            }
            Some(Ok(_)) => ControlFlow::Continue(false),
            Some(Err(error)) => self.failed(failure_of(&error)),
            None => self.failed(Failure::new(Class::Partial, "ended without a close frame")),
        }
    }

    fn timed_out<T>(&self, doing: &str) -> ControlFlow<End, T> {
        self.failed(Failure::timed_out(doing))
    }

    fn failed<T>(&self, failure: Failure) -> ControlFlow<End, T> {
        ControlFlow::Break(End::Failed(failure.on(self.local, self.echoes > 0)))
    }

    /// An echo in the terms of a response. Its connection may be older than a cutover, and outlive it.
    fn response(&self) -> Response {
        Response {
            status: SWITCHING,
            version: self.version.clone(),
            close: false,
            chunked: false,
            chunks: 0,
            bytes: 0,
            opened: self.opened,
            local: self.local,
            reused: self.echoes > 1,
        }
    }
}

async fn close(mut stream: WebSocketStream<TcpStream>) {
    let closing = async {
        // Whatever becomes of it: the session is over, and its end has been counted.
        if stream.close(None).await.is_ok() {
            while let Some(Ok(_)) = stream.next().await {}
        }
    };
    let _in_time = timeout(CLOSING, closing).await;
}

fn failure_of(error: &Error) -> Failure {
    match error {
        Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Failure::new(Class::Partial, "ended without a close frame")
        }
        Error::Io(error) => Failure::reading(error, 0),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
            Failure::new(Class::Partial, "ended without a close frame")
        }
        Error::Protocol(ProtocolError::HandshakeIncomplete) => Failure::ended(0),
        Error::Http(response) => Failure::new(
            Class::WrongStatus,
            format!("status {} instead of 101", response.status().as_u16()),
        ),
        error => Failure::new(Class::Other, format!("websocket: {error}")),
    }
}

fn update(worker: &Worker, change: impl FnOnce(&mut crate::stats::ModeStats)) {
    worker
        .shared
        .stats
        .borrow_mut()
        .update(worker.index, change);
}
