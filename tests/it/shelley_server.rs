//! Every endpoint of the example's server, with its shapes, its headers and its refusals.

use std::{
    io::{BufRead, BufReader},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::shelley_tools::{Answer, Server, request, sent};
use crate::stage::until;

/// After so long without anything new a stream says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(30);

fn types(transcript: &Value) -> Vec<&str> {
    let messages = transcript["messages"].as_array().unwrap();
    messages
        .iter()
        .map(|message| message["type"].as_str().unwrap())
        .collect()
}

/// What the message of this number says.
fn text(transcript: &Value, at: usize) -> String {
    let data = transcript["messages"][at]["llm_data"].as_str().unwrap();
    let data: Value = serde_json::from_str(data).unwrap();
    data["Content"][0]["Text"].as_str().unwrap().to_owned()
}

fn one(server: &Server, id: &str) -> Value {
    server.get(&format!("/api/conversation/{id}")).json()
}

/// The conversation when the model has said what it will.
fn settled(server: &Server, id: &str) -> Value {
    until(|| Some(one(server, id)).filter(|it| it["conversation"]["working"] == false))
}

fn ids(answer: &Answer) -> Vec<String> {
    let conversations = answer.json();
    let conversations = conversations.as_array().unwrap().iter();
    conversations
        .map(|it| it["conversation_id"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_new_conversation_is_accepted_with_a_system_prompt_the_message_and_its_reply() {
    let server = Server::start(&[]);

    let id = server.begin("hello");

    assert!(id.starts_with('c') && id.len() == 7, "{id}");
    let transcript = settled(&server, &id);
    assert_eq!(types(&transcript), ["system", "user", "agent"]);
    assert_eq!(text(&transcript, 2), "Well, hi there!");
    let reply = &transcript["messages"][2];
    assert_eq!(
        (&reply["sequence_id"], &reply["end_of_turn"]),
        (&json!(3), &json!(true))
    );
    assert_eq!(reply["conversation_id"], json!(id));
    let data: Value = serde_json::from_str(reply["llm_data"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&data["Role"], &data["EndOfTurn"]),
        (&json!(1), &json!(true))
    );
    let slug = until(|| {
        one(&server, &id)["conversation"]["slug"]
            .as_str()
            .map(str::to_owned)
    });
    assert_eq!(slug, "hello");
}

#[test]
fn a_new_conversation_is_refused_with_the_reason() {
    let server = Server::start(&[]);
    let new = |body: &str| server.post("/api/conversations/new", body);

    assert_eq!(new("{").said(), (400, "Invalid JSON"));
    assert_eq!(new("{}").said(), (400, "Message is required"));
    assert_eq!(
        new(r#"{"message":"x","model":"gpt"}"#).said(),
        (400, "Unsupported model: gpt")
    );
    assert!(ids(&server.get("/api/conversations")).is_empty());
}

#[test]
fn a_change_needs_the_header_that_browsers_do_not_send() {
    let server = Server::start(&[]);

    for path in [
        "conversations/new",
        "conversation/x/chat",
        "conversation/x/cancel",
    ] {
        let answer = request(server.address(), "POST", &format!("/api/{path}"), &[], "{}");
        assert_eq!(answer.status, 403, "{path}");
        assert!(answer.body.starts_with("CSRF protection: "), "{answer:?}");
    }
    assert_eq!(server.get("/api/conversations").status, 200);
}

#[test]
fn nothing_of_the_api_is_answered_without_the_required_header() {
    let server = Server::start(&["--require-header", "X-Exedev-Userid"]);

    let get = |headers: &[&str], path| request(server.address(), "GET", path, headers, "").status;

    assert_eq!(get(&[], "/api/conversations"), 403);
    assert_eq!(get(&["X-Exedev-Userid: 7"], "/api/conversations"), 200);
    assert_eq!(get(&[], "/"), 200);
    assert_eq!(
        server
            .post("/api/conversations/new", r#"{"message":"x"}"#)
            .status,
        403
    );
}

#[test]
fn the_predictable_model_says_what_is_documented() {
    let server = Server::start(&[]);

    for (said, kind, answered) in [
        ("hello", "agent", "Well, hi there!"),
        (
            "Hello",
            "agent",
            "Hello! I'm Shelley, your AI assistant. How can I help you today?",
        ),
        ("echo: a: b", "agent", "a: b"),
        (
            "error: out of tokens",
            "error",
            "LLM request failed: predictable error: out of tokens",
        ),
        ("bash: ls", "agent", "I'll run the command: ls"),
        ("delay: 0.01", "agent", "Delayed for 0.01 seconds"),
        (
            "what?",
            "agent",
            "edit predictable.go to add a response for that one...",
        ),
    ] {
        let id = server.begin(said);
        let transcript = settled(&server, &id);
        assert_eq!(types(&transcript), ["system", "user", kind], "{said}");
        assert_eq!(text(&transcript, 2), answered);
    }
}

#[test]
fn the_predictable_model_thinks_and_asks_for_a_tool_in_parts_of_their_own() {
    let server = Server::start(&[]);
    let parts = |message: &str| {
        let transcript = settled(&server, &server.begin(message));
        let data = transcript["messages"][2]["llm_data"].as_str().unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        let parts = data["Content"].as_array().unwrap().iter();
        parts
            .map(|part| (part["Type"].as_u64().unwrap(), part.clone()))
            .collect::<Vec<_>>()
    };

    let [(3, thought), (2, _)] = &parts("think: well")[..] else {
        panic!("no thought and text");
    };
    assert_eq!(thought["Text"], "well");
    let [(2, _), (5, tool)] = &parts("bash: ls")[..] else {
        panic!("no text and tool");
    };
    assert_eq!(
        (&tool["ToolName"], &tool["ToolInput"]),
        (&json!("bash"), &json!({"command": "ls"}))
    );
}

#[test]
fn a_delay_of_the_environment_is_added_to_each_reply() {
    let server = Server::with("PREDICTABLE_DELAY_MS", "3600000");

    let id = server.begin("hello");

    until(|| (one(&server, &id)["conversation"]["working"] == true).then_some(()));
    server.post(&format!("/api/conversation/{id}/cancel"), "");
    assert_eq!(types(&settled(&server, &id)).len(), 3);
}

#[test]
fn a_chat_goes_on_with_a_conversation_and_is_not_found_without_one() {
    let server = Server::start(&[]);
    let id = server.begin("hello");
    settled(&server, &id);
    let chat = |id: &str, body: &str| server.post(&format!("/api/conversation/{id}/chat"), body);

    let answer = chat(&id, r#"{"message":"echo: more"}"#);

    assert_eq!(answer.said(), (202, r#"{"status":"accepted"}"#));
    let transcript = until(|| Some(one(&server, &id)).filter(|it| types(it).len() == 5));
    assert_eq!(text(&transcript, 4), "more");
    assert_eq!(types(&transcript)[3..], ["user", "agent"]);
    assert_eq!(chat(&id, "{}").said(), (400, "Message is required"));
    assert_eq!(
        chat("cNONE", r#"{"message":"x"}"#).said(),
        (404, "Conversation not found")
    );
}

#[test]
fn what_is_said_meanwhile_is_answered_in_its_turn() {
    let server = Server::start(&[]);
    let id = server.begin("delay: 0.2");
    let chat = format!("/api/conversation/{id}/chat");

    server.post(&chat, r#"{"message":"echo: second"}"#);

    let transcript = settled(&server, &id);
    assert_eq!(
        types(&transcript),
        ["system", "user", "user", "agent", "agent"]
    );
    assert_eq!(text(&transcript, 3), "Delayed for 0.2 seconds");
    assert_eq!(text(&transcript, 4), "second");
}

#[test]
fn a_slow_model_is_working_until_it_is_cancelled() {
    let server = Server::start(&[]);
    let id = server.begin("delay: 3600");
    let cancel = || server.post(&format!("/api/conversation/{id}/cancel"), "");
    assert_eq!(one(&server, &id)["conversation"]["working"], true);

    assert_eq!(cancel().said(), (200, r#"{"status":"cancelled"}"#));

    let transcript = one(&server, &id);
    assert_eq!(transcript["conversation"]["working"], false);
    assert_eq!(text(&transcript, 2), "[Operation cancelled]");
    assert_eq!(
        cancel().said(),
        (200, r#"{"status":"no_active_conversation"}"#)
    );
}

#[test]
fn a_cancelled_answer_never_comes() {
    let server = Server::start(&[]);
    let id = server.begin("delay: 0.2");
    let at = |what: &str| format!("/api/conversation/{id}/{what}");

    server.post(&at("cancel"), "");
    server.post(&at("chat"), r#"{"message":"delay: 0.4"}"#);

    let transcript = settled(&server, &id);
    assert_eq!(
        types(&transcript),
        ["system", "user", "agent", "user", "agent"]
    );
    assert_eq!(text(&transcript, 4), "Delayed for 0.4 seconds");
}

#[test]
fn the_list_is_newest_first_in_pages_and_can_be_searched() {
    let server = Server::start(&[]);
    let made: Vec<String> = ["echo: one", "echo: two", "echo: three"]
        .map(|message| {
            let id = server.begin(message);
            until(|| one(&server, &id)["conversation"]["slug"].as_str().map(drop));
            settled(&server, &id);
            id
        })
        .into();
    let list = |query: &str| ids(&server.get(&format!("/api/conversations{query}")));

    assert_eq!(list(""), [&*made[2], &made[1], &made[0]]);
    assert_eq!(list("?limit=1&offset=1"), [&*made[1]]);
    assert_eq!(list("?q=TWO"), [&*made[1]]);
    assert_eq!(list("?q=guidance"), [""; 0]);
    assert_eq!(list("?q=guidance&search_content=true").len(), 3);
    let row = &server.get("/api/conversations").json()[0];
    for field in [
        "conversation_id",
        "slug",
        "user_initiated",
        "created_at",
        "updated_at",
        "cwd",
        "archived",
        "parent_conversation_id",
        "model",
        "working",
    ] {
        assert!(row.get(field).is_some(), "{field} is missing: {row}");
    }
}

#[test]
fn what_is_archived_is_listed_apart_until_it_is_taken_back() {
    let server = Server::start(&[]);
    let id = server.begin("hello");
    let act = |what: &str| server.post(&format!("/api/conversation/{id}/{what}"), "");
    let listed = || {
        (
            ids(&server.get("/api/conversations")),
            ids(&server.get("/api/conversations/archived")),
        )
    };

    assert_eq!(act("archive").json()["archived"], true);
    assert_eq!(listed(), (vec![], vec![id.clone()]));
    assert_eq!(act("unarchive").json()["archived"], false);
    assert_eq!(listed(), (vec![id.clone()], vec![]));
    assert_eq!(
        server.post("/api/conversation/cNONE/archive", "").status,
        404
    );
    assert_eq!(
        server.post("/api/conversation/cNONE/unarchive", "").status,
        404
    );
}

#[test]
fn what_is_deleted_is_gone() {
    let server = Server::start(&[]);
    let id = server.begin("hello");
    let delete = || server.post(&format!("/api/conversation/{id}/delete"), "");

    assert_eq!(delete().said(), (200, r#"{"status":"deleted"}"#));

    assert_eq!(delete().said(), (404, "Conversation not found"));
    assert_eq!(
        server.get(&format!("/api/conversation/{id}")).said(),
        (404, "Conversation not found")
    );
    assert!(ids(&server.get("/api/conversations")).is_empty());
}

#[test]
fn a_slug_is_given_once_and_can_be_changed() {
    let server = Server::start(&[]);
    let (first, second) = (server.begin("..."), server.begin("!!!"));
    let rename =
        |id: &str, body: &str| server.post(&format!("/api/conversation/{id}/rename"), body);

    assert_eq!(
        rename(&first, r#"{"slug":"My name"}"#).json()["slug"],
        "my-name"
    );
    assert_eq!(
        rename(&second, r#"{"slug":"my-name"}"#).json()["slug"],
        "my-name-2"
    );
    assert_eq!(
        rename(&first, r#"{"slug":"my-name"}"#).json()["slug"],
        "my-name"
    );
    assert_eq!(
        rename(&first, r#"{"slug":"."}"#).said(),
        (400, "Slug is required")
    );
    assert_eq!(rename("cNONE", r#"{"slug":"x"}"#).status, 404);
}

#[test]
fn the_models_and_the_page_name_the_default() {
    let server = Server::start(&[]);

    assert_eq!(
        server.get("/api/models").json(),
        json!([{"id": "predictable", "ready": true, "max_context_tokens": 200_000}])
    );
    let page = server.get("/");
    assert!(page.head.contains("text/html"), "{page:?}");
    assert!(
        page.body
            .contains(r#"window.__SHELLEY_INIT__={"default_model":"predictable"};"#),
        "{page:?}"
    );
}

#[test]
fn the_stream_begins_with_a_snapshot_and_goes_on_with_what_is_new() {
    let server = Server::start(&[]);
    let id = server.begin("hello");
    settled(&server, &id);
    let path = format!("/api/conversation/{id}/stream");
    let mut stream = BufReader::new(sent(server.address(), "GET", &path, &[], ""));
    let mut frame = || {
        let mut line = String::new();
        while !line.starts_with("data: ") {
            line.clear();
            assert_ne!(
                stream.read_line(&mut line).unwrap(),
                0,
                "the stream has ended"
            );
        }
        serde_json::from_str::<Value>(&line["data: ".len()..]).unwrap()
    };

    let first = frame();
    server.post(
        &format!("/api/conversation/{id}/chat"),
        r#"{"message":"delay: 3600"}"#,
    );
    let mut later = frame();
    while later["conversation_state"]["working"] == false {
        later = frame();
    }

    assert_eq!(types(&first), ["system", "user", "agent"]);
    assert_eq!(
        first["conversation_state"],
        json!({"conversation_id": id, "working": false, "model": "predictable"})
    );
    assert_eq!(first["heartbeat"], false);
    assert_eq!(types(&later), ["user"]);
    assert_eq!(later["messages"][0]["sequence_id"], 4);
}

#[test]
#[ignore = "takes half a minute; .ci/run runs it"]
fn a_stream_of_which_nothing_is_new_has_a_heartbeat_whatever_else_goes_on() {
    let server = Server::start(&[]);
    let (id, other) = (server.begin("hello"), server.begin("hello"));
    settled(&server, &id);
    let path = format!("/api/conversation/{id}/stream");
    let stream = sent(server.address(), "GET", &path, &[], "");
    stream.set_read_timeout(Some(2 * HEARTBEAT)).unwrap();
    let (heard, is_heard) = channel();
    thread::spawn(move || {
        let lines = BufReader::new(stream).lines().map_while(Result::ok);
        let mut frames = lines.filter_map(|line| {
            let data = line.strip_prefix("data: ")?;
            Some(serde_json::from_str::<Value>(data).unwrap())
        });
        let beat = frames.nth(1);
        let _ = heard.send(beat.expect("nothing came"));
    });

    let beat = loop {
        settled(&server, &other);
        server.post(
            &format!("/api/conversation/{other}/chat"),
            r#"{"message":"hello"}"#,
        );
        match is_heard.recv_timeout(HEARTBEAT / 10) {
            Err(RecvTimeoutError::Timeout) => {}
            heard => break heard.unwrap(),
        }
    };

    assert_eq!(beat["heartbeat"], true);
    assert_eq!(types(&beat), [""; 0]);
    assert_eq!(beat["conversation_state"]["conversation_id"], id);
}

#[test]
fn a_stream_that_is_long_by_design_is_idle() {
    let Some(stage) = crate::stage::Stage::set(&[], &[]) else {
        return;
    };
    let say = r#"{"message":"hello","cwd":"/proc/self/fdinfo"}"#;
    let new = crate::shelley_tools::post(stage.address(), "/api/conversations/new", say).json();
    let path = format!(
        "/api/conversation/{}/stream",
        new["conversation_id"].as_str().unwrap()
    );

    let mut stream = BufReader::new(sent(stage.address(), "GET", &path, &[], ""));
    stream.read_line(&mut String::new()).unwrap();

    until(|| {
        let ops = stage.snapshot(&stage.server).ops;
        ops.into_iter().find(|op| op.state == inflight::State::Idle)
    });
}

#[test]
fn a_stream_begins_after_the_message_it_is_told() {
    let server = Server::start(&[]);
    let id = server.begin("hello");
    settled(&server, &id);

    let path = format!("/api/conversation/{id}/stream?last_sequence_id=2");
    let stream = sent(server.address(), "GET", &path, &[], "");
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    let head: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
    let frame = lines.find_map(|line| line.strip_prefix("data: ").map(str::to_owned));

    assert!(
        head.iter().any(|line| line.contains("text/event-stream")),
        "{head:?}"
    );
    let frame: Value = serde_json::from_str(&frame.unwrap()).unwrap();
    assert_eq!(types(&frame), ["agent"]);
    assert_eq!(server.get("/api/conversation/cNONE/stream").status, 404);
}
