//! Which test this thread runs.

use std::{backtrace::Backtrace, env, panic::Location, thread};

/// The test that calls this, as its runner names it; else where it was called.
pub(super) fn current(caller: &Location<'_>) -> String {
    known().or_else(from_stack).unwrap_or_else(|| {
        // Better than nothing, and it leads there.
        format!("the one at {caller}")
    })
}

/// The test, as far as it is known without a look at the stack.
pub(super) fn known() -> Option<String> {
    // nextest runs one test a process.
    if let Ok(name) = env::var("NEXTEST_TEST_NAME") {
        return Some(name);
    }
    let name = thread::current().name().map(str::to_owned);
    // With --test-threads=1 libtest runs tests on the main thread.
    name.filter(|name| name != "main")
}

fn from_stack() -> Option<String> {
    in_stack(&Backtrace::force_capture().to_string())
}

// The outermost function below what libtest calls a test through.
fn in_stack(stack: &str) -> Option<String> {
    let frames = stack.lines().filter_map(|line| {
        let (number, name) = line.trim_start().split_once(": ")?;
        number.parse::<u32>().is_ok().then(|| name.trim())
    });
    let frames: Vec<&str> = frames.collect();
    let runner = frames
        .iter()
        .position(|name| name.contains("__rust_begin_short_backtrace"))?;
    let mut below = frames[..runner].iter().rev();
    let test = below.find(|name| !name.starts_with("core::") && !name.starts_with('<'))?;
    let test = test.trim_end_matches("::{{closure}}");
    // libtest leaves the name of the crate out.
    let (_, test) = test.split_once("::")?;
    Some(test.to_owned())
}

#[cfg(test)]
mod tests {
    use super::in_stack;

    const STACK: &str = "   0: inflight::testing::test_name::from_stack
             at ./src/testing/test_name.rs:30:14
   1: inflight::testing::watch::watch
   2: hangs::deep::a_stuck_op::{{closure}}
   3: tokio::runtime::block_on
   4: hangs::deep::a_stuck_op
             at ./tests/hangs.rs:20:5
   5: hangs::deep::a_stuck_op::{{closure}}
   6: core::ops::function::FnOnce::call_once
             at /rustc/1/library/core/src/ops/function.rs:253:5
   7: test::__rust_begin_short_backtrace
   8: test::run_test_in_process
";

    #[test]
    fn the_test_is_the_outermost_function_that_libtest_called() {
        assert_eq!(in_stack(STACK).as_deref(), Some("deep::a_stuck_op"));
        assert_eq!(in_stack("   0: a::b\n"), None);
    }
}
