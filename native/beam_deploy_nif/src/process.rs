//! Descriptors and signals of this and other OS processes.
//! Owners in Elixir: `BeamDeploy.PeerNode.Console` and `BeamDeploy.BlueGreen.Peer`.

#[cfg(feature = "nif")]
mod nif {
    use std::os::fd::RawFd;

    use rustix::io::{fcntl_setfd, FdFlags};
    use rustix::process::{kill_process, Pid, Signal};
    use rustler::Atom;

    use crate::error::{Done, Error};
    use crate::sys;

    mod atoms {
        rustler::atoms! { stdout, stderr }
    }

    /// Makes standard output or standard error the given descriptor.
    #[rustler::nif(schedule = "DirtyIo")]
    fn redirect(target: Atom, descriptor: RawFd) -> Done {
        let outcome = sys::with_descriptor(descriptor, |source| {
            if target == atoms::stdout() {
                Ok(rustix::stdio::dup2_stdout(source)?)
            } else if target == atoms::stderr() {
                Ok(rustix::stdio::dup2_stderr(source)?)
            } else {
                Err(rustix::io::Errno::INVAL.into())
            }
        });
        Done(outcome.map_err(Error::from))
    }

    /// Keeps a received descriptor out of programs that this process starts.
    #[rustler::nif]
    fn close_on_exec(descriptor: RawFd) -> Done {
        let outcome = sys::with_descriptor(descriptor, |fd| Ok(fcntl_setfd(fd, FdFlags::CLOEXEC)?));
        Done(outcome.map_err(Error::from))
    }

    #[rustler::nif(schedule = "DirtyIo")]
    fn close_descriptor(descriptor: RawFd) -> Done {
        Done(sys::close(descriptor).map_err(Error::from))
    }

    /// SIGKILL, for a peer whose VM no longer answers.
    #[rustler::nif]
    fn kill(os_pid: i32) -> Done {
        // Zero and negative numbers would mean whole process groups.
        let pid = Some(os_pid).filter(|pid| *pid > 1).and_then(Pid::from_raw);
        let pid = pid.ok_or(Error::BadArgument("os_pid"));
        Done(pid.and_then(|pid| Ok(kill_process(pid, Signal::KILL)?)))
    }
}
