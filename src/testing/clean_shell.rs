//! A shell for programs under test: in a directory outside of every mount, with nothing of ours that could run in it.

use std::{env, ffi::OsStr, os::unix::ffi::OsStrExt, process::Command};

use super::run_id::{RunId, VARIABLE};

/// What a shell runs, or takes for code, before or while it does what it was told.
const HOOKS: &[&str] = &[
    "BASH_ENV",
    "BASHOPTS",
    "BASH_XTRACEFD",
    "CDPATH",
    "ENV",
    "GLOBIGNORE",
    "PROMPT_COMMAND",
    "PS4",
    "SHELLOPTS",
];

/// Exported functions, which take the place of commands such as `cd`.
const FUNCTION: &[u8] = b"BASH_FUNC_";

/// A shell that runs a script. It starts in `/`: a child that changes its directory before it runs another program
/// is still its parent, and a mount that hangs would hang that.
pub(super) fn command(shell: &str, script: &str) -> Command {
    let mut command = Command::new(shell);
    command.args(["-c", script]).current_dir("/");
    for (name, _) in env::vars_os() {
        if is_hook(&name) {
            command.env_remove(name);
        }
    }
    command.env(VARIABLE, RunId::own().mark());
    command
}

fn is_hook(name: &OsStr) -> bool {
    HOOKS.iter().any(|hook| name == *hook) || name.as_bytes().starts_with(FUNCTION)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::is_hook;

    #[test]
    fn exported_functions_and_startup_files_are_hooks() {
        for hook in ["BASH_ENV", "BASH_FUNC_cd%%", "ENV"] {
            assert!(is_hook(OsStr::new(hook)), "{hook}");
        }
        assert!(!is_hook(OsStr::new("PATH")));
    }
}
