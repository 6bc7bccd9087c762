//! Files that outlive a crash, and the lock that one process holds. Owner in Elixir: `BeamDeploy.Release.Store`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{self as sysfs, FlockOperation};
use rustix::io::Errno;

use crate::error::Error;

/// Held while it exists, and given back by the kernel when the process ends, however it ends.
pub struct Lock(Mutex<Option<File>>);

impl Lock {
    /// `EAGAIN` when another process, or another lock of this one, holds it.
    pub fn take(path: &Path) -> Result<Self, Error> {
        let file = private()
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(Error::from)?;
        sysfs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Lock(Mutex::new(Some(file))))
    }

    pub fn give_back(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// For writing, readable by nobody else, and never through a symlink.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    options
}

/// Gives the file new contents so that after a crash it has either the old or the new ones, on disk once this
/// returns.
pub fn replace(path: &Path, contents: &[u8]) -> Result<(), Error> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);

    let mut file = private().create(true).truncate(true).open(&temporary)?;
    file.write_all(contents)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_directory(path.parent().unwrap_or(Path::new("/")))?;
    Ok(())
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match File::open(path)?.sync_all() {
        // Some network file systems cannot sync a directory, and have nothing to sync there.
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(()),
        other => other,
    }
}

/// Brings all that was written to the file system of `path` to the disk. One call for thousands of files: a sync
/// of each costs hundreds of times as much.
pub fn sync_file_system(path: &Path) -> Result<(), Error> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    sysfs::syncfs(File::open(path)?)?;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        sync_directory(path)?;
        sysfs::sync();
    }
    Ok(())
}

/// Lets ext4 spread what is made in the directory over the disk, as it does below the root directory. It gives no
/// inode out again for minutes after its file was deleted, and looking for another among thousands just deleted in
/// the same place makes staging twice as slow. Other file systems do not know the flag and do not need it.
pub fn spread(path: &Path) -> Result<(), Error> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let directory = File::open(path)?;
        let set = sysfs::ioctl_getflags(&directory)
            .and_then(|flags| sysfs::ioctl_setflags(&directory, flags | sysfs::IFlags::TOPDIR));
        match set {
            Ok(()) | Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _unused = path;
    Ok(())
}

#[cfg(feature = "nif")]
mod nif {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use rustler::{Binary, Resource, ResourceArc};

    use super::Lock;
    use crate::error::{Done, Error};

    #[rustler::resource_impl]
    impl Resource for Lock {}

    #[rustler::nif]
    fn effective_user() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    /// With its mode from its first instant, whatever the umask leaves open.
    #[rustler::nif(schedule = "DirtyIo")]
    fn make_private_directory(path: Binary) -> Done {
        Done(rustix::fs::mkdir(as_path(&path), rustix::fs::Mode::RWXU).map_err(Error::from))
    }

    #[rustler::nif(schedule = "DirtyIo")]
    fn lock_file(path: Binary) -> Result<ResourceArc<Lock>, Error> {
        Lock::take(as_path(&path)).map(ResourceArc::new)
    }

    #[rustler::nif(schedule = "DirtyIo")]
    fn unlock_file(lock: ResourceArc<Lock>) -> Done {
        lock.give_back();
        Done(Ok(()))
    }

    #[rustler::nif(schedule = "DirtyIo")]
    fn replace_file(path: Binary, contents: Binary) -> Done {
        Done(super::replace(as_path(&path), contents.as_slice()))
    }

    #[rustler::nif(schedule = "DirtyIo")]
    fn spread_directory(path: Binary) -> Done {
        Done(super::spread(as_path(&path)))
    }

    #[rustler::nif(schedule = "DirtyIo")]
    fn sync_file_system(path: Binary) -> Done {
        Done(super::sync_file_system(as_path(&path)))
    }

    fn as_path<'a>(binary: &'a Binary<'_>) -> &'a Path {
        Path::new(OsStr::from_bytes(binary.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_once() -> Result<(), Error> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("lock");
        let lock = Lock::take(&path)?;
        assert!(Lock::take(&path).is_err());
        lock.give_back();
        drop(Lock::take(&path)?);
        drop(Lock::take(&path)?);
        Ok(())
    }

    #[test]
    fn replaced_contents_are_whole_and_private() -> Result<(), Error> {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("state");
        replace(&path, b"one")?;
        replace(&path, b"two")?;
        assert_eq!(std::fs::read(&path)?, b"two");
        assert_eq!(
            std::fs::metadata(&path)?.permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(std::fs::read_dir(directory.path())?.count(), 1);
        sync_file_system(directory.path())
    }
}
