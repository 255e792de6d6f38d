//! What ONNX Runtime says, without the places in its source.

use crate::artifact::{Told, being_read};

/// Why a session has no threads.
pub(super) const NO_THREAD: &str = "no thread could be started; let the program take more memory with --max-memory-mb, or use fewer \
                                    threads with --threads";

/// The message of an error. Where it begins with, or holds, `FILE.cc:LINE FUNCTION(TYPES) `, that is left out. Where
/// memory was short, it ends with what helps.
pub(super) fn reason<R>(error: &ort::Error<R>) -> String {
    with_cure(without_places(error.message().trim()))
}

fn with_cure(mut reason: String) -> String {
    // The number and the text behind it are those of any want of memory.
    if let Some(at) = reason.find("pthread_create failed") {
        reason.truncate(at);
        reason.push_str(NO_THREAD);
    }
    if ["Failed to allocate memory", "bad_alloc", "bad allocation"].iter().any(|short| reason.contains(short)) {
        being_read(&mut |file, told| {
            let about =
                if told == Told::Largest { "the largest file read is " } else { "memory ended while working on " };
            reason.push_str("; ");
            reason.push_str(about);
            reason.push_str(&String::from_utf8_lossy(file));
        });
        reason.push_str("; a smaller --batch needs less memory, and --max-memory-mb lets the program take more");
    }
    reason
}

fn without_places(message: &str) -> String {
    let mut rest = message;
    let mut kept = String::new();
    while let Some(at) = rest.find("/onnxruntime_src/") {
        let Some(length) = place(&rest[at..]) else { break };
        kept.push_str(&rest[..at]);
        rest = &rest[at + length..];
    }
    kept + rest
}

/// Length of `FILE.cc:LINE FUNCTION(TYPES) ` at the beginning of `text`, with what a signature may end in.
fn place(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    let end = text.char_indices().find_map(|(at, c)| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        let behind = &text[at + 1..];
        // `>` closes the lambda of a function: `OUTER(TYPES)::<lambda(TYPES)> `.
        let ends = behind.starts_with(' ') || behind.starts_with("> ");
        (c == ')' && depth == 0 && ends).then(|| at + 1 + behind.find(' ').unwrap_or(0) + 1)
    })?;
    Some(if text[end..].starts_with("const ") { end + "const ".len() } else { end })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_memory_ends_with_what_helps() {
        let said = "pthread_create failed, error code: 12 error msg: Cannot allocate memory".to_owned();
        let told = with_cure(said);
        assert!(told.starts_with("no thread could be started; ") && told.ends_with(" with --threads"), "{told}");
        assert!(with_cure("std::bad_alloc".to_owned()).contains("--max-memory-mb"));
        assert_eq!(with_cure("another reason".to_owned()), "another reason");
    }

    #[test]
    fn places_in_the_source_are_left_out_and_nothing_else() {
        for (said, left) in [
            (
                "/onnxruntime_src/core/graph/model.cc:256 onnxruntime::Model::Model(onnx::ModelProto&&, const \
                 std::function<void(int)>&) Unsupported model IR version: 99, max (supported) is 13",
                "Unsupported model IR version: 99, max (supported) is 13",
            ),
            (
                "Status Message: /onnxruntime_src/core/bfc_arena.cc:360 void* Arena::Allocate(size_t, bool) const Failed \
                 to allocate 4 bytes",
                "Status Message: Failed to allocate 4 bytes",
            ),
            (
                "Exception: /onnxruntime_src/text.cc:235 Locale::Locale(const std::string&)::<lambda()> No such locale",
                "Exception: No such locale",
            ),
            ("/onnxruntime_src/a.cc:1 without a signature", "/onnxruntime_src/a.cc:1 without a signature"),
            (
                "In Node, (\"conv\", Conv) : () -> (\"c\",) , Error",
                "In Node, (\"conv\", Conv) : () -> (\"c\",) , Error",
            ),
            ("/onnxruntime_src/a.cc:1 f(int", "/onnxruntime_src/a.cc:1 f(int"),
        ] {
            assert_eq!(without_places(said), left);
        }
    }
}
