//! What the file system of the example shows of a conversation and its messages, and under which names.

use crate::shelley_tools::{begun, clone, post, refused, request, said, sh, stage};
use crate::stage::{Hung, Stage, until};

#[test]
fn what_was_not_sent_yet_has_nothing_that_the_server_would_know() {
    let Some(stage) = stage() else { return };
    let mnt = &stage.mnt();
    let id = clone(mnt);

    for file in [
        "created",
        "id",
        "slug",
        "created_at",
        "updated_at",
        "archived",
        "working",
        "cancel",
        "messages/count",
        "messages/all.md",
        "messages/all.json",
        "messages/000-system",
        "messages/last/1/0",
    ] {
        let said = refused(mnt, &format!("cat $mnt/conversation/{id}/{file}"));
        assert!(said.contains("No such file"), "{file}: {said}");
    }
    assert!(
        refused(mnt, &format!("touch $mnt/conversation/{id}/archived")).contains("No such file")
    );
    assert!(
        refused(mnt, &format!("cat $mnt/conversation/{id}/send")).contains("Permission denied")
    );
}

#[test]
fn a_conversation_that_was_begun_shows_what_the_server_knows() {
    let Some(stage) = stage() else { return };
    let mnt = &stage.mnt();
    let id = begun(mnt, "echo: Good day");
    let of = |file: &str| said(mnt, &format!("cat $mnt/conversation/{id}/{file}"));

    let server_id = of("id").trim().to_owned();

    assert!(server_id.starts_with('c'), "{server_id}");
    let slug = until(|| {
        sh(mnt, &format!("cat $mnt/conversation/{id}/slug"))
            .1
            .strip_suffix('\n')
            .map(str::to_owned)
            .filter(|slug| !slug.contains(' '))
    });
    assert_eq!(slug, "echo-good-day");
    assert_eq!(of("created"), "");
    let row = request(
        stage.address(),
        "GET",
        &format!("/api/conversation/{server_id}"),
        &[],
        "",
    )
    .json();
    for time in ["created_at", "updated_at"] {
        assert_eq!(row["conversation"][time], of(time).trim());
    }
    let listed = said(mnt, "ls $mnt/conversation");
    let mut names = [&*id, &*server_id, "last", &*slug];
    names.sort_unstable();
    let mut listed: Vec<&str> = listed.lines().collect();
    listed.sort_unstable();
    assert_eq!(listed, names);
    for link in [&*server_id, &*slug] {
        assert_eq!(
            said(mnt, &format!("readlink $mnt/conversation/{link}")),
            format!("{id}\n")
        );
    }
    assert_eq!(
        said(mnt, "readlink $mnt/conversation/last/1"),
        format!("../{id}\n")
    );
    assert!(refused(mnt, "readlink $mnt/conversation/last/2").is_empty());
}

#[test]
fn the_messages_are_directories_that_say_all_of_them() {
    let Some(stage) = stage() else { return };
    let mnt = &stage.mnt();
    let id = begun(mnt, "hello");
    let of = |file: &str| said(mnt, &format!("cat $mnt/conversation/{id}/messages/{file}"));
    let list = |dir: &str| said(mnt, &format!("ls $mnt/conversation/{id}/messages/{dir}"));

    assert_eq!(
        list(""),
        "000-system\n001-user\n002-agent\nall.json\nall.md\ncount\nlast\n"
    );
    assert_eq!(
        list("001-user"),
        "content.md\nconversation_id\ncreated_at\nllm_data\nmessage_id\nsequence_id\ntype\n"
    );
    assert!(list("002-agent").ends_with("type\nusage_data\n"));
    assert_eq!(of("count"), "3\n");
    assert_eq!(
        (of("001-user/content.md"), of("001-user/type")),
        ("hello\n".into(), "user\n".into())
    );
    assert_eq!(
        (of("001-user/sequence_id"), of("002-agent/content.md")),
        ("2\n".into(), "Well, hi there!".into())
    );
    assert_eq!(
        of("002-agent/message_id").trim().rsplit('-').next(),
        Some("3")
    );
    let server_id = said(mnt, &format!("cat $mnt/conversation/{id}/id"));
    assert_eq!(of("002-agent/conversation_id"), server_id);
    assert!(of("002-agent/created_at").ends_with("Z\n"));
    assert_eq!(list("002-agent/llm_data"), "Content\nEndOfTurn\nRole\n");
    assert_eq!(of("002-agent/llm_data/Content/0/Text"), "Well, hi there!");
    assert_eq!(of("002-agent/usage_data/input_tokens"), "0\n");
    assert!(of("all.md").ends_with("## 001-user\n\nhello\n\n## 002-agent\n\nWell, hi there!\n\n"));
    assert!(of("all.json").contains("\"conversation_id\""));
    for none in [
        "003-agent",
        "002-user",
        "2-agent",
        "002-agent/llm_data/Content/1",
    ] {
        let said = refused(mnt, &format!("ls $mnt/conversation/{id}/messages/{none}"));
        assert!(said.contains("No such file"), "{said}");
    }
}

#[test]
fn the_last_messages_are_links_in_the_order_they_were_said() {
    let Some(stage) = stage() else { return };
    let mnt = &stage.mnt();
    let id = begun(mnt, "hello");
    let last = format!("$mnt/conversation/{id}/messages/last");

    assert_eq!(said(mnt, &format!("ls {last}/2")), "0\n1\n");
    assert_eq!(
        said(mnt, &format!("readlink {last}/2/0 {last}/2/1")),
        "../../001-user\n../../002-agent\n"
    );
    assert_eq!(
        said(mnt, &format!("cat {last}/1/0/content.md")),
        "Well, hi there!"
    );
    assert_eq!(said(mnt, &format!("ls {last}/99")), "0\n1\n2\n");
    for none in ["0", "x", "2/2", "99/3"] {
        assert!(
            refused(mnt, &format!("ls {last}/{none}")).contains("No such file"),
            "{none}"
        );
    }
}

#[test]
fn a_slug_leads_to_who_has_it_now() {
    let Some(stage) = stage() else { return };
    let mnt = &stage.mnt();
    let slug = "$mnt/conversation/echo-same";
    let named = |id: &str| {
        until(|| (sh(mnt, &format!("test -e $mnt/conversation/{id}/slug")).0 == 0).then_some(()));
        said(
            mnt,
            &format!("cat $mnt/conversation/{id}/slug; readlink {slug}"),
        )
    };
    let delete = |id: &str| {
        let id = said(mnt, &format!("cat $mnt/conversation/{id}/id"));
        post(
            stage.address(),
            &format!("/api/conversation/{}/delete", id.trim()),
            "",
        );
    };

    let first = begun(mnt, "echo: same");
    assert_eq!(named(&first), format!("echo-same\n{first}\n"));
    delete(&first);
    let second = begun(mnt, "echo: same");
    assert_eq!(named(&second), format!("echo-same\n{second}\n"));
    delete(&second);
    said(mnt, "ls $mnt/conversation");
    refused(mnt, &format!("readlink {slug}"));
}

#[test]
fn what_others_begin_on_the_server_is_found_by_list_id_and_slug() {
    let Some(stage) = stage() else { return };
    let mnt = &stage.mnt();
    let say = r#"{"message":"echo: elsewhere","cwd":"/proc/self/fdinfo"}"#;
    let new = post(stage.address(), "/api/conversations/new", say).json();
    let server_id = new["conversation_id"].as_str().unwrap();
    let path = format!("/api/conversation/{server_id}");
    until(|| {
        request(stage.address(), "GET", &path, &[], "").json()["conversation"]["slug"]
            .as_str()
            .map(drop)
    });

    let by_slug = said(mnt, "readlink $mnt/conversation/echo-elsewhere");
    let by_id = said(mnt, &format!("readlink $mnt/conversation/{server_id}"));

    assert_eq!(by_slug, by_id);
    assert_eq!(
        said(mnt, &format!("cat $mnt/conversation/{server_id}/id")),
        format!("{server_id}\n")
    );
    assert!(said(mnt, "ls $mnt/conversation").contains(by_id.trim()));
    assert!(refused(mnt, "ls $mnt/conversation/no-such-slug").contains("No such file"));
}

#[test]
fn what_was_listed_before_its_send_had_an_answer_is_no_second_conversation() {
    let options = ["--fresh", "--cwd", "/proc/self/fdinfo"];
    let Some(stage) = Stage::set(&["--gate", "accepted"], &options) else {
        return;
    };
    let mnt = &stage.mnt();
    let id = clone(mnt);
    let all = |list: String| {
        list.lines()
            .filter(|name| name.len() == 8)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };

    let mut send = Hung::start(&format!(
        "echo ... > {}/conversation/{id}/send",
        mnt.display()
    ));
    let gate = stage.arrive("accepted");
    let before = all(said(mnt, "ls $mnt/conversation"));
    drop(gate);
    assert!(send.ended());

    assert!(before.len() == 1 && before[0] != id, "{before:?}");
    assert_eq!(all(said(mnt, "ls $mnt/conversation")), [id]);
    let other = &before[0];
    refused(mnt, &format!("test -e $mnt/conversation/{other}/created"));
}
