//! Slow uploads: the body goes out in pieces with pauses between them.

use std::time::Duration;

use super::Worker;
use crate::connection::{Buffer, Response};
use crate::failure::Failure;

pub async fn run(worker: Worker) {
    let options = &worker.shared.options;
    let size = options.upload_bytes as usize;
    let pieces = options.upload_pieces.min(options.upload_bytes);
    let pause = Duration::from_millis(options.upload_ms) / pieces;
    let head = worker.request_head(
        "POST",
        &format!(
            "content-type: application/octet-stream\r\ncontent-length: {size}\r\nconnection: close\r\n"
        ),
    );
    let body = vec![b'u'; size];
    let piece = size.div_ceil(pieces as usize);
    let mut buffer = worker.buffer();
    while let Some(scheduled) = worker.next_turn().await {
        let result = upload(&worker, &head, body.chunks(piece), pause, &mut buffer).await;
        worker.finish(scheduled, result).await;
    }
}

async fn upload(
    worker: &Worker,
    head: &[u8],
    pieces: impl Iterator<Item = &[u8]>,
    pause: Duration,
    buffer: &mut Buffer,
) -> Result<Response, Failure> {
    let deadline = worker.deadline();
    let mut connection = worker.connect(deadline).await?;
    connection.send(head, deadline).await?;
    for piece in pieces {
        connection.send(piece, deadline).await?;
        tokio::time::sleep(pause).await;
    }
    connection.receive(buffer, deadline).await
}
