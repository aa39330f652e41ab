//! Settings of the wrapper.

use std::ffi::OsString;

/// Settings of the wrapper.
#[derive(Clone, Debug)]
pub struct Options {
    pub(super) diag_name: OsString,
    pub(super) listed: bool,
    pub(super) mode: u16,
    pub(super) gid: Option<u32>,
    pub(super) parallel_dirops: Option<bool>,
    pub(super) slots: Option<usize>,
}

impl Options {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self {
            diag_name: ".diag".into(),
            listed: false,
            mode: 0o400,
            gid: None,
            parallel_dirops: None,
            slots: None,
        }
    }

    /// Names the file in the root that shows the report; the same with `.json` behind it shows it as
    /// JSON. Default: `.diag`.
    #[must_use]
    pub fn diag_name(mut self, name: impl Into<OsString>) -> Self {
        self.diag_name = name.into();
        self
    }

    /// Shows the two files in listings of the root, too. Default: false, since what is listed is read by
    /// backups and searches.
    #[must_use]
    pub fn listed(mut self, listed: bool) -> Self {
        self.listed = listed;
        self
    }

    /// Sets who may read: the first digit is for the daemon's user and whoever mounted, the second for
    /// the group, the third for all. Only the read bits count. Default: `0o400`; root may always.
    #[must_use]
    pub fn mode(mut self, mode: u16) -> Self {
        self.mode = mode & 0o444;
        self
    }

    /// Sets the group that the second digit of [`mode`](Self::mode) is for. Default: the daemon's.
    #[must_use]
    pub fn gid(mut self, gid: u32) -> Self {
        self.gid = Some(gid);
        self
    }

    /// Asks the kernel for lookups and listings of one directory in parallel, or does not. Default: only with
    /// one slot, where a file system that answers within its callbacks cannot tell.
    ///
    /// One that answers later, from tasks or threads of its own, can: if it counts on one request a directory
    /// at a time, say `false`. Then `.diag` may be out of reach while a lookup or a listing of the root hangs.
    #[must_use]
    pub fn parallel_dirops(mut self, parallel: bool) -> Self {
        self.parallel_dirops = Some(parallel);
        self
    }

    /// Sets how many operations run at once in a [`Tracked`](super::Tracked) that is mounted by hand. Its
    /// `Config::n_threads` must then be one more, or `.diag` waits with the rest. Default: no limit.
    ///
    /// [`mount`](super::mount) and its kin take it from `Config::n_threads` instead.
    #[must_use]
    pub fn slots(mut self, slots: usize) -> Self {
        self.slots = Some(slots);
        self
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}
