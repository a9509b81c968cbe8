//! Opening what an address names, step by step from the root, following no symbolic link.
//!
//! In: a `file://` address. Out: the folder that holds it, open, and names within it; or a [`BucketError`]. Each step is
//! taken relative to the folder before, so that nobody can swap a folder for a link between the check and the use. What
//! is no regular file (a pipe, a device, a socket) is never opened for reading or writing.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::super::error::Action;
use super::super::{BucketError, Scheme, Uri, refused};

/// A folder reached without a link.
pub(super) struct Folder(OwnedFd);

/// Why a step failed, before it is put into words.
#[derive(Debug)]
pub(super) enum Step {
    Link,
    Os(Errno),
}

impl From<Errno> for Step {
    fn from(errno: Errno) -> Self {
        Self::Os(errno)
    }
}

impl From<io::Error> for Step {
    fn from(error: io::Error) -> Self {
        Self::Os(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Folder {
    /// The folder that `key`, without a leading slash, lies in: all segments but the last.
    pub(super) fn holding(key: &str, make: bool) -> Result<Self, Step> {
        let mut folder = Self(rustix::fs::openat(CWD, "/", OFlags::PATH | FOLDER, Mode::empty())?);
        let (parents, _) = key.rsplit_once('/').unwrap_or(("", key));
        for name in parents.split('/').filter(|name| !name.is_empty()) {
            folder = folder.enter_or_make(name, make)?;
        }
        Ok(folder)
    }

    fn enter_or_make(&self, name: &str, make: bool) -> Result<Self, Step> {
        match self.enter(name) {
            Err(Step::Os(Errno::NOENT)) if make => {
                match rustix::fs::mkdirat(&self.0, name, Mode::from_raw_mode(0o777)) {
                    Ok(()) => self.sync()?,
                    // Somebody else was quicker.
                    Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                self.enter(name)
            }
            entered => entered,
        }
    }

    /// A folder within this one.
    pub(super) fn enter(&self, name: &str) -> Result<Self, Step> {
        match rustix::fs::openat(&self.0, name, OFlags::PATH | FOLDER, Mode::empty()) {
            Ok(fd) => Ok(Self(fd)),
            Err(errno) => Err(self.why(name, errno)),
        }
    }

    /// The kernel says of a link what it says of a file that is no folder.
    fn why(&self, name: &str, errno: Errno) -> Step {
        let is_link = matches!(errno, Errno::NOTDIR | Errno::LOOP)
            && self.stat(name).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink);
        if is_link { Step::Link } else { Step::Os(errno) }
    }

    /// What `name` is, without following it.
    pub(super) fn stat(&self, name: &str) -> Result<Stat, Errno> {
        rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Opens a regular file for reading; `None`: there is no such file.
    pub(super) fn open(&self, name: &str) -> Result<Option<File>, Step> {
        // Not blocking: opening a pipe would wait for somebody to write to it.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match rustix::fs::openat(&self.0, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.why(name, errno)),
            Ok(fd) => {
                let file = File::from(fd);
                Ok(file.metadata()?.is_file().then_some(file))
            }
        }
    }

    /// Opens or makes a file for reading and writing.
    pub(super) fn open_or_make(&self, name: &str) -> Result<File, Step> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match rustix::fs::openat(&self.0, name, flags, Mode::from_raw_mode(0o666)) {
            Ok(fd) => Ok(fd.into()),
            Err(errno) => Err(self.why(name, errno)),
        }
    }

    /// Makes a file that must be new.
    pub(super) fn make(&self, name: &str) -> Result<File, Step> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.0, name, flags, Mode::from_raw_mode(0o666))?.into())
    }

    /// Gives a file a second name, which must be new.
    pub(super) fn link(&self, old: &str, new: &str) -> Result<(), Errno> {
        rustix::fs::linkat(&self.0, old, &self.0, new, AtFlags::empty())
    }

    /// Gives a file another name, in place of whatever had it.
    pub(super) fn rename(&self, old: &str, new: &str) -> Result<(), Errno> {
        rustix::fs::renameat(&self.0, old, &self.0, new)
    }

    /// Takes a name away; it may be absent.
    pub(super) fn remove(&self, name: &str) -> Result<(), Errno> {
        match rustix::fs::unlinkat(&self.0, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Waits until the names in it are on the disk.
    pub(super) fn sync(&self) -> Result<(), Errno> {
        rustix::fs::fsync(self.readable()?)
    }

    /// The names in it and whether each is a folder: regular files and folders only, in the order of keys.
    pub(super) fn names(&self) -> Result<Vec<(String, bool)>, Errno> {
        let mut names = Vec::new();
        for entry in Dir::new(self.readable()?)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if [".", ".."].contains(&name) {
                continue;
            }
            match self.file_type(entry.file_type(), name) {
                Some(FileType::Directory) => names.push((format!("{name}/"), true)),
                Some(FileType::RegularFile) => names.push((name.to_owned(), false)),
                _ => {}
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Some file systems leave an entry's type to be asked for.
    fn file_type(&self, listed: FileType, name: &str) -> Option<FileType> {
        match listed {
            FileType::Unknown => self.stat(name).ok().map(|stat| FileType::from_raw_mode(stat.st_mode)),
            known => Some(known),
        }
    }

    fn readable(&self) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(self.0.as_fd(), ".", OFlags::RDONLY | FOLDER, Mode::empty())
    }
}

impl Step {
    /// Whether there is simply nothing at that place.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Os(Errno::NOENT | Errno::NOTDIR))
    }

    /// In words, for `action` on `uri`.
    pub(super) fn fault(self, uri: &Uri, action: Action) -> BucketError {
        let (uri, permission) = (uri.clone(), action.permission(Scheme::File));
        match self {
            Self::Link => {
                refused(&uri, "a symbolic link is on its path, and none is followed: name the place that it leads to")
            }
            Self::Os(Errno::ACCESS | Errno::PERM | Errno::ROFS) => BucketError::Forbidden { uri, permission },
            Self::Os(Errno::NOENT | Errno::NOTDIR) => BucketError::NotFound { uri },
            Self::Os(
                errno @ (Errno::NOSPC
                | Errno::DQUOT
                | Errno::IO
                | Errno::MFILE
                | Errno::NFILE
                | Errno::NOMEM
                | Errno::STALE
                | Errno::TIMEDOUT),
            ) => BucketError::Unavailable { uri, reason: io::Error::from(errno).to_string() },
            Self::Os(errno) => refused(&uri, io::Error::from(errno).to_string()),
        }
    }
}
