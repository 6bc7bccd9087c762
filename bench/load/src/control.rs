//! The marks from outside, read by a thread of its own so that a busy run does not date them late.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{unbounded_channel, UnboundedReceiver, UnboundedSender};

use crate::windows::Mark;

/// How often a followed file is looked at again.
const POLL: Duration = Duration::from_millis(5);

pub type Marks = UnboundedReceiver<(Instant, Mark)>;

/// Starts reading; the channel ends with the input.
pub fn follow(control: &str) -> io::Result<Marks> {
    let (sender, receiver) = unbounded_channel();
    let file = match control {
        "-" => None,
        path => Some(BufReader::new(File::open(path)?)),
    };
    thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || match file {
            None => read_lines(io::stdin().lock(), &sender, || false),
            // A file may still grow and a fifo find another writer: its end is not the end of the run.
            Some(file) => read_lines(file, &sender, || {
                thread::sleep(POLL);
                true
            }),
        })?;
    Ok(receiver)
}

fn read_lines(
    mut input: impl BufRead,
    sender: &UnboundedSender<(Instant, Mark)>,
    mut wait_for_more: impl FnMut() -> bool,
) {
    let mut line = String::new();
    loop {
        match input.read_line(&mut line) {
            // Half a line, when a file is read while it is written, stays in `line` until its rest has come.
            Ok(0) if wait_for_more() => continue,
            Ok(0) => return,
            Ok(_) if !line.ends_with('\n') && wait_for_more() => continue,
            Ok(_) => {}
            Err(error) => {
                eprintln!("control: {error}");
                return;
            }
        }
        match Mark::parse(&line) {
            Some(mark) => {
                if sender.send((Instant::now(), mark)).is_err() {
                    return;
                }
            }
            None if line.trim().is_empty() => {}
            None => eprintln!("control: not understood: {}", line.trim()),
        }
        line.clear();
    }
}
