//! Every file of the example's file system, as a shell sees it over the running server.

use crate::shelley_tools::{begun, clone, refused, request, said, settle, sh, stage};
use crate::stage::{Stage, until};

#[test]
fn the_root_says_how_it_is_used() {
    let Some(stage) = stage() else { return };
    let mnt = &stage.mnt();

    assert_eq!(
        said(mnt, "ls $mnt"),
        "README.md\nconversation\nmodel\nnew\n"
    );
    assert!(said(mnt, "cat $mnt/README.md").starts_with("Conversations as files.\n"));
    assert_eq!(said(mnt, "readlink $mnt/new"), "model/default/new\n");
    assert!(refused(mnt, "cat $mnt/nothing").contains("No such file"));
    assert!(refused(mnt, "echo x > $mnt/README.md").contains("Permission denied"));
    assert!(refused(mnt, "echo x > $mnt/other").contains("Permission denied"));
}

#[test]
fn the_models_are_those_of_the_server() {
    let Some(stage) = stage() else { return };
    let mnt = &stage.mnt();

    assert_eq!(said(mnt, "ls $mnt/model"), "default\npredictable\n");
    assert_eq!(said(mnt, "readlink $mnt/model/default"), "predictable\n");
    assert_eq!(said(mnt, "ls $mnt/model/predictable"), "id\nnew\nready\n");
    assert_eq!(said(mnt, "cat $mnt/model/default/id"), "predictable\n");
    assert_eq!(said(mnt, "cat $mnt/model/default/ready"), "");
    assert_eq!(said(mnt, "ls $mnt/new"), "clone\nstart\n");
    assert!(refused(mnt, "ls $mnt/model/gpt").contains("No such file"));
}

#[test]
fn each_open_of_clone_is_another_conversation() {
    let Some(stage) = stage() else { return };
    let mnt = &stage.mnt();

    let (one, other) = (clone(mnt), clone(mnt));

    for id in [&one, &other] {
        assert!(
            id.len() == 8 && id.bytes().all(|b| b.is_ascii_hexdigit()),
            "{id}"
        );
        let conversation = format!("$mnt/conversation/{id}");
        assert_eq!(
            said(mnt, &format!("cat {conversation}/fuse_id")),
            format!("{id}\n")
        );
        assert_eq!(
            said(mnt, &format!("cat {conversation}/ctl")),
            "model=predictable\n"
        );
        assert_eq!(
            said(mnt, &format!("ls {conversation}")),
            "ctl\nfuse_id\nmessages\nmodel\nsend\n"
        );
        assert_eq!(
            said(mnt, &format!("ls {conversation}/messages")),
            "all.json\nall.md\ncount\nlast\n"
        );
    }
    assert_ne!(one, other);
    assert_eq!(
        said(mnt, "ls $mnt/conversation"),
        "last\n",
        "nobody was told of them"
    );
}

#[test]
fn ctl_takes_a_model_and_a_directory_until_something_is_sent() {
    let Some(stage) = stage() else { return };
    let mnt = &stage.mnt();
    let id = clone(mnt);
    let of = format!("$mnt/conversation/{id}");
    let ctl = format!("{of}/ctl");
    let mode = format!("stat -c %a {ctl}");

    assert_eq!(said(mnt, &mode), "644\n");
    for bad in ["model=gpt", "cwd=relative", "colour=red", "predictable"] {
        assert!(
            refused(mnt, &format!("echo {bad} | tee {ctl}")).contains("Invalid argument"),
            "{bad}"
        );
    }
    said(
        mnt,
        &format!("echo model=predictable cwd=/proc/self > {ctl}"),
    );
    assert_eq!(
        said(mnt, &format!("cat {ctl}")),
        "model=predictable cwd=/proc/self\n"
    );
    assert_eq!(said(mnt, &format!("readlink {of}/cwd")), "/proc/self\n");
    assert_eq!(
        said(mnt, &format!("readlink {of}/model")),
        "../../model/predictable\n"
    );

    said(
        mnt,
        &format!("echo cwd=/proc/self/fdinfo > {ctl}; echo hello > {of}/send"),
    );

    assert_eq!(said(mnt, &mode), "444\n");
    assert!(refused(mnt, &format!("echo cwd=/tmp > {ctl}")).contains("Read-only file system"));
    let late = clone(mnt);
    let late = format!("$mnt/conversation/{late}");
    let written = refused(
        mnt,
        &format!("exec 3> {late}/ctl; echo hello > {late}/send; echo cwd=/tmp | cat >&3"),
    );
    assert!(written.contains("Read-only file system"), "{written}");
    let server_id = said(mnt, &format!("cat {of}/id"));
    let one = request(
        stage.address(),
        "GET",
        &format!("/api/conversation/{}", server_id.trim()),
        &[],
        "",
    );
    assert_eq!(one.json()["conversation"]["cwd"], "/proc/self/fdinfo");
}

#[test]
fn archived_is_a_file_that_is_touched_and_removed() {
    let Some(stage) = stage() else { return };
    let mnt = &stage.mnt();
    let id = begun(mnt, "hello");
    let archived = format!("$mnt/conversation/{id}/archived");
    let count = || {
        let list = request(
            stage.address(),
            "GET",
            "/api/conversations/archived",
            &[],
            "",
        )
        .json();
        list.as_array().unwrap().len()
    };

    refused(mnt, &format!("test -e {archived}"));
    said(
        mnt,
        &format!("touch {archived} && test -e {archived} && touch {archived}"),
    );
    assert_eq!(count(), 1);
    assert_eq!(said(mnt, "ls $mnt/conversation"), "last\n", "it is hidden");
    assert_eq!(
        said(mnt, &format!("cat $mnt/conversation/{id}/messages/count")),
        "3\n"
    );
    said(mnt, &format!("rm {archived}"));
    refused(mnt, &format!("test -e {archived}"));
    assert_eq!(count(), 0);
    assert!(refused(mnt, &format!("rm $mnt/conversation/{id}/send")).contains("Permission denied"));
}

#[test]
fn a_directory_that_is_removed_is_a_conversation_that_is_deleted() {
    let Some(stage) = stage() else { return };
    let mnt = &stage.mnt();
    let (id, unsent) = (begun(mnt, "hello"), clone(mnt));

    said(
        mnt,
        &format!("rmdir $mnt/conversation/{id} $mnt/conversation/{unsent}"),
    );

    let list = request(stage.address(), "GET", "/api/conversations", &[], "").json();
    assert_eq!(list.as_array().unwrap().len(), 0);
    assert_eq!(said(mnt, "ls $mnt/conversation"), "last\n");
    refused(mnt, &format!("test -e $mnt/conversation/{id}/created"));
    assert!(refused(mnt, "rmdir $mnt/conversation/last").contains("Permission denied"));
}

#[test]
fn what_works_is_shown_and_can_be_cancelled() {
    let Some(stage) = stage() else { return };
    let mnt = &stage.mnt();
    let id = clone(mnt);
    let of = format!("$mnt/conversation/{id}");

    said(
        mnt,
        &format!("echo 'delay: 3600' > {of}/send && test -e {of}/working"),
    );
    assert!(said(mnt, &format!("ls {of}")).contains("cancel\n"));
    said(mnt, &format!("echo > {of}/cancel"));

    refused(mnt, &format!("test -e {of}/working"));
    refused(mnt, &format!("test -e {of}/cancel"));
    assert_eq!(
        said(mnt, &format!("cat {of}/messages/last/1/0/content.md")),
        "[Operation cancelled]"
    );
}

#[test]
fn start_says_stdin_in_a_new_conversation_and_prints_its_id() {
    let Some(stage) = stage() else { return };
    let mnt = &stage.mnt();

    let id = said(mnt, "cd /proc/self/fdinfo && echo hello | $mnt/new/start");

    let id = id.trim();
    settle(mnt, id);
    let reply = said(
        mnt,
        &format!("cat $mnt/conversation/{id}/messages/last/1/0/content.md"),
    );
    assert_eq!(reply, "Well, hi there!");
    assert!(said(mnt, &format!("readlink $mnt/conversation/{id}/cwd")).ends_with("/fdinfo\n"));
}

#[test]
fn a_required_header_is_sent() {
    let server = ["--require-header", "X-Exedev-Userid"];
    let Some(stage) = Stage::set(&server, &["--fresh", "--header", "X-Exedev-Userid=7"]) else {
        return;
    };

    assert_eq!(
        said(&stage.mnt(), "ls $mnt/model"),
        "default\npredictable\n"
    );
}

/// How often the file system was asked for this name so far.
fn lookups(stage: &Stage, path: &str) -> usize {
    let mount = stage.snapshot(&stage.mount);
    let ended = mount.recent.iter().map(|it| &it.op);
    ended
        .filter(|op| op.name == "lookup" && op.target == path)
        .count()
}

#[test]
fn the_kernel_keeps_each_name_for_a_while_and_none_if_it_shall_keep_nothing() {
    for (fresh, most) in [(None, 1), (Some("--fresh"), 3)] {
        let Some(stage) = Stage::set(&[], &Vec::from_iter(fresh)) else {
            return;
        };
        let mnt = &stage.mnt();

        for path in [
            "/README.md",
            "/model/predictable",
            "/conversation/1b9b",
            "/conversation/1b9b/ctl",
            "/conversation/no-such-slug",
        ] {
            sh(mnt, &format!("for n in 1 2 3; do test -e $mnt{path}; done"));

            // An op ends a moment after its answer was sent.
            until(|| stage.snapshot(&stage.mount).ops.is_empty().then_some(()));
            until(|| (lookups(&stage, path) >= most).then_some(()));
            assert_eq!(lookups(&stage, path), most, "{path} {fresh:?}");
        }
    }
}

#[test]
fn that_a_name_is_not_there_is_forgotten_before_the_rest() {
    let Some(stage) = Stage::set(&[], &[]) else {
        return;
    };
    let (mnt, none) = (&stage.mnt(), "/conversation/no-such-slug");

    until(|| {
        sh(
            mnt,
            &format!("test -e $mnt{none}; test -e $mnt/conversation/1b9b"),
        );
        (lookups(&stage, none) >= 2).then_some(())
    });

    assert_eq!(lookups(&stage, "/conversation/1b9b"), 1);
}
