//! Carries packets between TUN devices of two network namespaces, each a fixed time late: a network with delay on a
//! machine whose kernel has no netem. A packet takes as long as it does whatever goes on, so handshakes last as long as
//! they would between machines.
//!
//! `beam_deploy_delay MILLISECONDS DEVICE OTHER_NAMESPACE OTHER_DEVICE`

mod tun;

use std::collections::VecDeque;
use std::error::Error;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::thread::{move_into_link_name_space, LinkNameSpaceType};

/// More than any packet: devices have an MTU of 1500.
const LONGEST: usize = 65_536;
/// A network drops what it cannot hold.
const MOST_WAITING: usize = 20_000;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [milliseconds, device, namespace, other_device] = arguments.as_slice() else {
        return Err("takes MILLISECONDS DEVICE OTHER_NAMESPACE OTHER_DEVICE".into());
    };
    let delay = Duration::from_millis(milliseconds.parse()?);
    let here = tun::open(device)?;
    // A device stays in the namespace that it was opened in.
    move_into_link_name_space(
        File::open(namespace)?.as_fd(),
        Some(LinkNameSpaceType::Network),
    )?;
    let there = tun::open(other_device)?;
    carry(delay, [Way::new(&here, &there), Way::new(&there, &here)])
}

struct Way<'a> {
    from: &'a OwnedFd,
    to: &'a OwnedFd,
    waiting: VecDeque<(Instant, Vec<u8>)>,
}

impl<'a> Way<'a> {
    fn new(from: &'a OwnedFd, to: &'a OwnedFd) -> Self {
        Way {
            from,
            to,
            waiting: VecDeque::new(),
        }
    }

    fn take(&mut self, due: Instant, buffer: &mut [u8]) -> Result<(), Errno> {
        loop {
            match rustix::io::read(self.from, &mut *buffer) {
                Ok(size) if self.waiting.len() < MOST_WAITING => {
                    let packet = buffer.get(..size).unwrap_or_default().to_vec();
                    self.waiting.push_back((due, packet));
                }
                Ok(_dropped) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn give(&mut self, now: Instant) -> Result<(), Errno> {
        while self.waiting.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_due, packet)) = self.waiting.pop_front() {
                match rustix::io::write(self.to, &packet) {
                    // Dropped, as a full device does.
                    Ok(_) | Err(Errno::AGAIN | Errno::NOBUFS) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn next(&self) -> Option<Instant> {
        self.waiting.front().map(|(due, _packet)| *due)
    }
}

fn carry(delay: Duration, mut ways: [Way<'_>; 2]) -> Result<(), Box<dyn Error>> {
    let mut buffer = vec![0; LONGEST];
    loop {
        let wait = ways
            .iter()
            .filter_map(Way::next)
            .min()
            .map(|due| due.saturating_duration_since(Instant::now()));
        let timeout = wait.map(Timespec::try_from).transpose()?;
        let mut devices = ways
            .each_ref()
            .map(|way| PollFd::new(way.from, PollFlags::IN));
        match poll(&mut devices, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let now = Instant::now();
        for way in &mut ways {
            way.take(now + delay, &mut buffer)?;
            way.give(now)?;
        }
    }
}
