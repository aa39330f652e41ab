//! The story: a conversation that goes well, the hang and what is seen of it, the same with a server that says nothing, the repair.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use crate::args::Args;
use crate::needs::{may_not_mount, missing};
use crate::stage::{SOON, Stage, Trouble, said};

/// After how long the file system gives up on the server: this is what ends a hang.
const HTTP_TIMEOUT: Duration = Duration::from_secs(10);

/// While somebody looks at it.
const KEPT: Duration = Duration::from_secs(24 * 3600);

const PARTS: [&str; 4] = ["normal", "hang", "foreign", "repaired"];

/// Tells the story. 0: it went as told. 1: it did not. 2: nothing can be mounted here, or what was asked for is unknown.
pub(crate) fn tell(mut args: Args) -> ExitCode {
    let only = args.value("--only").and_then(|only| match only {
        Some(only) if !PARTS.contains(&&*only) => {
            Err(format!("--only {only}: not one of {}", PARTS.join(", ")))
        }
        only => Ok(only),
    });
    let keep = args.flag("--keep");
    let only = match only.and_then(|only| args.nothing_left().map(|()| only)) {
        Ok(only) => only,
        Err(why) => {
            eprintln!("shelley: {why}");
            return ExitCode::from(2);
        }
    };
    if let Some(missing) = missing() {
        eprintln!("Cannot mount a file system here.\n{missing}");
        return ExitCode::from(2);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let told = match runtime {
        Ok(runtime) => {
            let told = runtime.block_on(tell_parts(only.as_deref(), keep));
            // Somebody may still be expected to press Enter.
            runtime.shutdown_background();
            told
        }
        Err(e) => Err(Trouble::Other(format!("no runtime: {e}"))),
    };
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(Trouble::CannotMount) => {
            eprintln!("The mount failed. {}", may_not_mount());
            ExitCode::from(2)
        }
        Err(Trouble::Other(why)) => {
            eprintln!("The story stopped: {why}");
            ExitCode::FAILURE
        }
    }
}

async fn tell_parts(only: Option<&str>, keep: bool) -> Result<(), Trouble> {
    println!("Two processes that hang each other, and what inflight shows of it.\n");
    let timeout = if keep { KEPT } else { HTTP_TIMEOUT };
    for (at, part) in PARTS.into_iter().enumerate() {
        if only.is_some_and(|only| only != part) {
            continue;
        }
        match part {
            "normal" => {
                println!("{}. A CONVERSATION\n", at + 1);
                let stage = Stage::set(&["--walk", "naive"], timeout).await?;
                let play = async |stage: &mut Stage| converse(stage, keep).await;
                stage.play(play).await?;
            }
            "hang" => {
                println!("{}. THE HANG\n", at + 1);
                let stage = Stage::set(&["--walk", "naive"], timeout).await?;
                let play = async |stage: &mut Stage| hang_on(stage, keep).await;
                stage.play(play).await?;
            }
            "foreign" => {
                println!(
                    "{}. THE SAME WITH A SERVER THAT DOES NOT SAY WHAT IT DOES\n",
                    at + 1
                );
                let options = ["--walk", "naive", "--no-inflight"];
                let stage = Stage::set(&options, timeout).await?;
                let play = async |stage: &mut Stage| hang_with_a_stranger(stage, keep).await;
                stage.play(play).await?;
            }
            _ => {
                println!("{}. THE REPAIR\n", at + 1);
                let stage = Stage::set(&["--walk", "repaired"], timeout).await?;
                let play = async |stage: &mut Stage| go_well(stage, keep).await;
                stage.play(play).await?;
            }
        }
    }
    Ok(())
}

async fn converse(stage: &mut Stage, keep: bool) -> Result<(), Trouble> {
    stage.open_gates();
    let dir = stage.dir.display().to_string();
    println!("In {dir}, a conversation about a folder in which nothing is mounted:");
    stage
        .show("mkdir work && echo Be brief. > work/AGENTS.md")
        .await?;
    let id = stage.show("cat mnt/new/clone").await?;
    let it = format!("mnt/conversation/{id}");
    stage
        .show(&format!("echo model=predictable cwd={dir}/work > {it}/ctl"))
        .await?;
    stage.show(&format!("echo hello > {it}/send")).await?;
    stage.settled(&id).await?;
    stage.show(&format!("ls {it}/messages")).await?;
    stage
        .show(&format!("cat {it}/messages/000-system/content.md; echo"))
        .await?;
    stage
        .show(&format!("cat {it}/messages/last/1/0/content.md; echo"))
        .await?;
    stage
        .show(&format!("echo 'echo: and more' > {it}/send"))
        .await?;
    stage.settled(&id).await?;
    stage
        .show(&format!("cat {it}/messages/last/1/0/content.md; echo"))
        .await?;
    stage.show("ls mnt/conversation").await?;
    stage.show("readlink mnt/conversation/hello").await?;
    stage
        .show(&format!("touch {it}/archived && ls mnt/conversation"))
        .await?;
    stage.show("head -n 1 mnt/.diag").await?;
    println!();
    if keep {
        return stage.look().await;
    }
    Ok(())
}

/// Brings a shell, the file system and the server to where each waits for the other.
async fn begin_to_hang(stage: &mut Stage) -> Result<tokio::process::Child, Trouble> {
    let send = stage.mnt().join("conversation/1b9b/send");
    let shell = stage.shell(&format!("echo hello > {}", send.display()))?;
    drop(stage.arrival("locked").await?);
    drop(stage.arrival("list").await?);
    stage.open_gates();
    Ok(shell)
}

async fn hang_on(stage: &mut Stage, keep: bool) -> Result<(), Trouble> {
    let send = stage.mnt().join("conversation/1b9b/send");
    println!("A shell sends a message, by writing to a file of the mount:");
    let mut shell = stage.shell(&format!("echo hello > {}", send.display()))?;
    let begun = Instant::now();

    let locked = stage.arrival("locked").await?;
    println!(
        "  The shell sits in close(2): the file system has sent POST /api/conversations/new, and waits."
    );
    println!(
        "  The server has taken its lock \"conversations\". Next it looks for guidance files under {}.",
        stage.dir.display()
    );
    drop(locked);
    let listing = stage.arrival("list").await?;
    println!(
        "  Its search has come into the mount. To list a directory the file system asks the server: GET /api/conversations."
    );
    drop(listing);
    stage.open_gates();
    println!("  The list needs the lock. Now each waits for the other, and nothing moves.\n");

    let (report, took) = stage.diag_of("DEADLOCK").await?;
    println!(
        "What the mount says of it. Answered in {} ms, though everything behind it is stuck.",
        took.as_millis()
    );
    println!("Look at [1] to [4], each waits for the next, and at who holds the lock:\n");
    println!("$ cat {}", stage.mnt().join(".diag").display());
    println!("{report}");

    println!("The same seen from the server. Look at the traces: they are the same requests.\n");
    println!("{}", stage.debug(&stage.server).await?);

    if keep {
        return stage.look().await;
    }
    println!(
        "Nobody does anything now. After {} s the file system gives up on the server, and the hang ends by itself:",
        HTTP_TIMEOUT.as_secs()
    );
    let status = stage.end_of(&mut shell, HTTP_TIMEOUT + SOON).await?;
    println!(
        "  The shell ended after {:.1} s, with {}.",
        begun.elapsed().as_secs_f32(),
        said(status)
    );
    println!(
        "  The file system answered EIO to its close(2), which no shell looks at: the end of a hang is silent."
    );
    let listed = stage
        .output("ls", &[stage.mnt().join("conversation")])
        .await?;
    println!(
        "  And the server has the message all the same, `ls {}/conversation` says: {}\n",
        stage.mnt().display(),
        listed.lines().collect::<Vec<_>>().join(" ")
    );
    Ok(())
}

async fn hang_with_a_stranger(stage: &mut Stage, keep: bool) -> Result<(), Trouble> {
    println!(
        "The same server, but nobody can ask it what it is in the middle of. The same message:"
    );
    let mut shell = begin_to_hang(stage).await?;
    let (report, _) = stage.diag_of("LIKELY DEADLOCK").await?;
    println!(
        "  Its process is known by its address, and that it is in the mount by the kernel: enough to suspect, not to prove.\n"
    );
    println!("$ cat {}", stage.mnt().join(".diag").display());
    println!("{report}");
    if keep {
        return stage.look().await;
    }
    stage.end_of(&mut shell, HTTP_TIMEOUT + SOON).await?;
    println!("It ends as before, when the file system gives up on the server.\n");
    Ok(())
}

async fn go_well(stage: &mut Stage, keep: bool) -> Result<(), Trouble> {
    let conversation = stage.mnt().join("conversation/1b9b");
    println!(
        "The same server, but it lets go of the lock before it looks for files, for a few seconds at most, and in no FUSE\nmount. The same message, from the folder above the mount:"
    );
    let begun = Instant::now();
    let mut shell = stage.shell(&format!(
        "echo hello > {}",
        conversation.join("send").display()
    ))?;
    drop(stage.arrival("locked").await?);
    stage.open_gates();
    let status = stage.end_of(&mut shell, SOON).await?;
    println!(
        "  The shell ended after {} ms, with {}.",
        begun.elapsed().as_millis(),
        said(status)
    );
    stage.settled("1b9b").await?;
    stage
        .show("cat mnt/conversation/1b9b/messages/000-system/content.md; echo")
        .await?;
    stage
        .show("cat mnt/conversation/1b9b/messages/last/1/0/content.md; echo")
        .await?;
    stage.show("head -n 1 mnt/.diag").await?;
    println!();
    if keep {
        return stage.look().await;
    }
    Ok(())
}
