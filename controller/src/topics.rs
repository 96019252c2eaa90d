//! Runbooks, in the program itself: on the worst day there may be nothing else to read.

/// A topic: its name, what it is about, and the text.
pub(crate) struct Topic {
    pub(crate) name: &'static str,
    about: &'static str,
    pub(crate) text: &'static str,
}

macro_rules! topic {
    ($name:literal, $about:literal) => {
        Topic { name: $name, about: $about, text: include_str!(concat!("topics/", $name, ".txt")) }
    };
}

pub(crate) const TOPICS: [Topic; 6] = [
    topic!("first-hour", "from nothing to enforcing, without breaking anything"),
    topic!("worst-day", "something that must work does not"),
    topic!("reboot", "what holds after one, and what does not"),
    topic!("uninstall", "leave a node as it was"),
    topic!("threat-model", "who is kept out, who is trusted, what happens when something fails"),
    topic!("words", "what the words mean"),
];

/// All topics, for the end of the help.
pub(crate) fn list() -> String {
    let lines: Vec<_> = TOPICS.iter().map(|topic| format!("  {:13} {}", topic.name, topic.about)).collect();
    format!("Topics of `bulkhead help TOPIC`:\n{}", lines.join("\n"))
}
