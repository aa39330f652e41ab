//! What the program does, a file for each verb; and the command line that names them.

pub(crate) mod abort;
pub(crate) mod options;
mod print;
pub(crate) mod run;
pub(crate) mod show;
mod signals;
mod stops;
mod terminal;
