//! A load client for swaps: it sends requests of many kinds to a server on this machine, classes every
//! failure, and tells what happened inside the swaps' windows from what happened outside.

mod connection;
mod control;
mod failure;
mod http1;
mod modes;
mod options;
mod report;
mod schedule;
mod socket;
mod stats;
mod sys;
mod target;
mod windows;

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Parser;
use rustix::process::{getrlimit, setrlimit, Resource};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep_until, timeout};

use control::Marks;
use modes::{Shared, Worker};
use options::{Mode, Options};
use report::Run;
use schedule::{Bounds, Reason, Turns};
use socket::Sources;
use stats::Stats;
use target::Target;
use windows::Mark;

/// Descriptors for all that is not a connection under load.
const SPARE_DESCRIPTORS: u64 = 64;

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let target = Target::parse(&options.url)?;
    let modes = options.modes(&target.path)?;
    allow_descriptors(modes.iter().map(|mode| u64::from(mode.concurrency)).sum())?;
    let marks = control::follow(&options.control)?;
    // One thread: nothing is locked, and the load takes one core at most from what it measures.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, load(options, target, modes, marks))
}

async fn load(
    options: Options,
    target: Target,
    modes: Vec<Mode>,
    mut marks: Marks,
) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let end = start + Duration::from_secs(options.seconds);
    let grace = Duration::from_millis(options.grace_ms);
    let bounds = Rc::new(Bounds::new(options.requests));
    let stats = Stats::new(
        start,
        modes.iter().map(|mode| mode.name.clone()),
        options.expect_status.clone(),
        options.examples as usize,
    )?;
    let shared = Rc::new(Shared {
        sources: Sources::new(target.address, options.source_addresses),
        bounds: Rc::clone(&bounds),
        stats: RefCell::new(stats),
        messages: Cell::new(0),
        target,
        options,
    });
    let mut workers = start_workers(&shared, modes, start)?;
    say_ready()?;

    listen(&shared, &mut marks, end).await;

    let stopped_at = bounds.stopped_at().unwrap_or(end);
    let all_done = async { while workers.join_next().await.is_some() {} };
    if timeout(grace, all_done).await.is_err() {
        // What was still under way is counted as abandoned.
        workers.shutdown().await;
    }
    let run = Run {
        url: shared.options.url.clone(),
        reason: bounds.reason(),
        stopped_at,
    };
    let mut stats = shared.stats.borrow_mut();
    stats.close(stopped_at);
    eprint!("{}", report::table(&stats, &run)?);
    writeln!(io::stdout().lock(), "{}", report::json(&stats, &run))?;
    Ok(())
}

fn start_workers(shared: &Rc<Shared>, modes: Vec<Mode>, start: Instant) -> io::Result<JoinSet<()>> {
    let mut workers = JoinSet::new();
    for (index, mode) in modes.into_iter().enumerate() {
        let turns = Rc::new(Turns::new(Rc::clone(&shared.bounds), mode.rate, start)?);
        let mode = Rc::new(mode);
        for number in 0..mode.concurrency {
            let worker = Worker {
                shared: Rc::clone(shared),
                turns: Rc::clone(&turns),
                mode: Rc::clone(&mode),
                index,
                number,
            };
            workers.spawn_local(worker.run());
        }
    }
    Ok(workers)
}

/// Enters the marks until the load ends.
async fn listen(shared: &Shared, marks: &mut Marks, end: Instant) {
    let bounds = &shared.bounds;
    while !bounds.is_stopped() {
        tokio::select! {
            biased;
            () = bounds.stopped() => {}
            mark = marks.recv() => match mark {
                Some((_, Mark::Stop)) => bounds.stop(Reason::Stop),
                Some((when, mark)) => {
                    if let Err(problem) = shared.stats.borrow_mut().mark(&mark, when) {
                        eprintln!("control: {problem}");
                    }
                }
                None => bounds.stop(Reason::EndOfInput),
            },
            () = sleep_until(end.into()) => bounds.stop(Reason::Seconds),
        }
    }
}

fn say_ready() -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "ready")?;
    stdout.flush()
}

/// Raises the soft limit of open files as far as the connections need.
fn allow_descriptors(connections: u64) -> Result<(), Box<dyn Error>> {
    let needed = connections + SPARE_DESCRIPTORS;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < needed) {
        if limit.maximum.is_some_and(|maximum| maximum < needed) {
            return Err(format!(
                "{connections} connections need more open files than this process may have"
            )
            .into());
        }
        limit.current = Some(needed);
        setrlimit(Resource::Nofile, limit)?;
    }
    Ok(())
}
