//! When requests are sent: as soon as a worker is free, or at the moments of a fixed rate; and the end of it.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, Notify};

/// A closed loop rests this long after a failure: a refusing port would otherwise be asked at the speed of the CPU.
const REST: Duration = Duration::from_millis(10);

/// Why no more requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Stop,
    EndOfInput,
    Seconds,
    Requests,
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Reason::Stop => "stop",
            Reason::EndOfInput => "eof",
            Reason::Seconds => "seconds",
            Reason::Requests => "requests",
        }
    }
}

/// The end of the load, and the number of requests that may still begin.
pub struct Bounds {
    left: Cell<u64>,
    reason: Cell<Option<Reason>>,
    stopped_at: Cell<Option<Instant>>,
    notify: Notify,
}

impl Bounds {
    pub fn new(requests: u64) -> Self {
        Bounds {
            left: Cell::new(requests),
            reason: Cell::new(None),
            stopped_at: Cell::new(None),
            notify: Notify::new(),
        }
    }

    /// Asks for one more request.
    pub fn take(&self) -> bool {
        if self.is_stopped() {
            return false;
        }
        match self.left.get().checked_sub(1) {
            Some(left) => {
                self.left.set(left);
                true
            }
            None => {
                self.stop(Reason::Requests);
                false
            }
        }
    }

    pub fn stop(&self, reason: Reason) {
        if self.reason.get().is_none() {
            self.reason.set(Some(reason));
            self.stopped_at.set(Some(Instant::now()));
            self.notify.notify_waiters();
        }
    }

    pub fn is_stopped(&self) -> bool {
        self.reason.get().is_some()
    }

    pub fn reason(&self) -> Option<Reason> {
        self.reason.get()
    }

    pub fn stopped_at(&self) -> Option<Instant> {
        self.stopped_at.get()
    }

    pub async fn stopped(&self) {
        let notified = self.notify.notified();
        if !self.is_stopped() {
            notified.await;
        }
    }

    /// Waits for `future`; `None` when the load ends first.
    pub async fn unless_stopped<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.stopped() => None,
            value = future => Some(value),
        }
    }
}

/// Gives the workers of one mode their turns.
pub struct Turns {
    bounds: Rc<Bounds>,
    paced: Option<Mutex<Pace>>,
}

struct Pace {
    start: Instant,
    rate: f64,
    sent: u64,
    timer: Timer,
}

impl Turns {
    pub fn new(bounds: Rc<Bounds>, rate: Option<f64>, start: Instant) -> io::Result<Self> {
        let pace = |rate| -> io::Result<_> {
            Ok(Mutex::new(Pace {
                start,
                rate,
                sent: 0,
                timer: Timer::new()?,
            }))
        };
        Ok(Turns {
            bounds,
            paced: rate.map(pace).transpose()?,
        })
    }

    /// The moment from which the next request counts: with a rate the one it was due at, however late a
    /// worker came free for it. `None` when the load has ended.
    pub async fn next(&self) -> Option<Instant> {
        let due = match &self.paced {
            None => Instant::now(),
            Some(pace) => {
                // The lock is fair: the worker that has waited longest takes the next moment.
                let mut pace = pace.lock().await;
                let due = pace.due();
                self.bounds
                    .unless_stopped(pace.timer.sleep_until(due))
                    .await?;
                pace.sent += 1;
                due
            }
        };
        self.bounds.take().then_some(due)
    }

    pub async fn rest_after_failure(&self) {
        if self.paced.is_none() {
            // An end of the load in between is seen by the next turn.
            let _ended = self.bounds.unless_stopped(tokio::time::sleep(REST)).await;
        }
    }
}

impl Pace {
    fn due(&self) -> Instant {
        self.start + Duration::from_secs_f64(self.sent as f64 / self.rate)
    }
}

#[cfg(target_os = "linux")]
use precise::Timer;

/// Tokio's own timer has a grain of 1 ms, which would be added to every latency of a scheduled request.
#[cfg(target_os = "linux")]
mod precise {
    use std::io;
    use std::os::fd::OwnedFd;
    use std::time::Instant;

    use rustix::time::{
        timerfd_create, timerfd_settime, Itimerspec, TimerfdClockId, TimerfdFlags,
        TimerfdTimerFlags, Timespec,
    };
    use tokio::io::unix::AsyncFd;

    use crate::sys;

    pub struct Timer(AsyncFd<OwnedFd>);

    impl Timer {
        pub fn new() -> io::Result<Self> {
            let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
            let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
            Ok(Timer(sys::watch(timer)?))
        }

        pub async fn sleep_until(&mut self, due: Instant) {
            // Woken too early by what an abandoned wait left behind, it sets the timer again.
            while let Some(left) = due.checked_duration_since(Instant::now()) {
                if left.is_zero() || self.wait(left).await.is_err() {
                    break;
                }
            }
        }

        async fn wait(&mut self, left: std::time::Duration) -> io::Result<()> {
            let value = Itimerspec {
                it_interval: Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                },
                it_value: Timespec::try_from(left).map_err(io::Error::other)?,
            };
            timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &value)?;
            // The mode's lock is held by the waiter, so that nobody else sets this timer meanwhile. Setting
            // it resets the count of expirations: nothing has to be read.
            self.0.readable().await?.clear_ready();
            Ok(())
        }
    }
}

#[cfg(not(target_os = "linux"))]
struct Timer;

#[cfg(not(target_os = "linux"))]
impl Timer {
    fn new() -> io::Result<Self> {
        Ok(Timer)
    }

    async fn sleep_until(&mut self, due: Instant) {
        tokio::time::sleep_until(due.into()).await;
    }
}
