//! Server-sent events and chunks, for any division of the bytes.

use octant::bench::load_client::chunk::{Chunk, ReportedUsage};
use octant::http_client::{SseParser, message};
use proptest::prelude::*;

/// Name and data of all events, with the bytes fed in pieces that end at these offsets.
fn events(bytes: &[u8], cuts: &[usize]) -> Vec<(String, String)> {
    let mut parser = SseParser::default();
    let mut found = Vec::new();
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.sort_unstable();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut from = 0;
    for to in cuts.into_iter().chain([bytes.len()]) {
        parser.feed(&bytes[from..to], |event| found.push((text(event.name), text(event.data))));
        from = to;
    }
    parser.finish(|event| found.push((text(event.name), text(event.data))));
    found
}

#[test]
fn all_three_line_ends_work_and_comments_are_ignored() {
    let expected =
        vec![("", "one"), ("", "two\nthree"), ("error", "{}"), ("", ""), ("", " spaced"), ("", "[DONE]")];
    let expected: Vec<_> = expected.into_iter().map(|(n, d)| (n.to_owned(), d.to_owned())).collect();
    for end in ["\n", "\r", "\r\n"] {
        let lines = [
            "\u{feff}data: one",
            "",
            ": keep-alive",
            "",
            "data:two",
            "data: three",
            "id: 7",
            "",
            "",
            "event: error",
            "retry: 5",
            "data: {}",
            "",
            "event: lonely",
            "",
            "data",
            "",
            "data:  spaced",
            "",
            "unknown: x",
            "",
            "data: [DONE]",
            "",
        ];
        let text = lines.join(end) + end;
        assert_eq!(events(text.as_bytes(), &[]), expected, "{end:?}");
        let every: Vec<usize> = (0..text.len()).collect();
        assert_eq!(events(text.as_bytes(), &every), expected, "{end:?}, byte by byte");
    }
}

#[test]
fn the_last_event_needs_no_empty_line_but_a_complete_line() {
    assert_eq!(events(b"data: [DONE]\n", &[]), [(String::new(), "[DONE]".to_owned())]);
    assert_eq!(events(b"data: {\"half", &[]), []);
}

proptest! {
    #[test]
    fn events_do_not_depend_on_the_division_of_the_bytes(
        lines in prop::collection::vec(
            (prop_oneof!["data: [a-zé ]{0,8}", "data:", ": x", "event: e", "", ""], 0usize..3), 0..30),
        cuts in prop::collection::vec(0usize..1000, 0..40),
    ) {
        let ends = ["\n", "\r", "\r\n"];
        let text: String = lines.iter().map(|(line, end)| format!("{line}{}", ends[*end])).collect();
        // A CR line followed by an empty LF line is one CRLF in both parses.
        prop_assert_eq!(events(text.as_bytes(), &cuts), events(text.as_bytes(), &[]));
        let data: usize = lines.iter().filter(|(line, _)| line.starts_with("data")).count();
        prop_assert!(events(text.as_bytes(), &cuts).len() <= data);
    }
}

#[test]
fn chunks_are_parsed() {
    let parse = |text: &str| Chunk::parse(text.as_bytes()).unwrap();
    for (content, choice) in [
        (true, r#"{"index":0,"delta":{"role":"assistant","content":"a\n\"é"}}"#),
        (false, r#"{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}"#),
        (false, r#"{"index":0,"delta":{"content":null}}"#),
        (true, r#"{"delta":{"reasoning_content":"hm"}}"#),
        (true, r#"{"delta":{"reasoning":"hm"}}"#),
        (true, r#"{"delta":{"tool_calls":[{"index":0}]}}"#),
        (true, r#"{"text":"a","logprobs":null}"#),
        (false, r#"{"text":""}"#),
    ] {
        let chunk = parse(&format!(r#"{{"id":"x","choices":[{choice}],"usage":null}}"#));
        assert_eq!(chunk, Chunk { content, ..Chunk::default() }, "{choice}");
    }
    assert!(parse(r#"{"choices":[{"delta":{},"finish_reason":"length"}]}"#).finished);
    let usage =
        parse(r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8}}"#).usage;
    assert_eq!(usage, Some(ReportedUsage { prompt_tokens: 3, completion_tokens: 5 }));
    assert_eq!(parse(r#"{"error":{"message":"gone","code":500}}"#).error.as_deref(), Some("gone"));
    assert!(Chunk::parse(b"{\"choices\":[").is_err());
    assert_eq!(message(&serde_json::json!({ "error": { "message": "full" } })), "full");
    assert_eq!(message(&serde_json::json!({ "detail": "no" })), "no");
    assert_eq!(message(&serde_json::json!("plain")), "plain");
}
