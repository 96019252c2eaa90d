//! What is said of an Intent or a Guard in its status, out of what agents tell. Pure.

use serde_json::{Value, json};

use super::{
    report::{Stands, cut},
    roster::Object,
};

/// Nodes that are named; of more it is said how many.
const NAMED: usize = 3;
/// Characters of a message.
const WORDS: usize = 2000;

/// How an object stands on a node.
#[derive(Clone, Debug)]
pub(super) struct OnNode<'a> {
    pub(super) node: &'a str,
    /// `None` when nothing was heard of its agent for too long.
    pub(super) stands: Option<Stands>,
    /// Why its agent cannot publish; empty when it can.
    pub(super) failed: &'a str,
    /// It drops nothing.
    pub(super) observe: bool,
}

impl OnNode<'_> {
    fn has_it(&self) -> bool {
        self.stands == Some(Stands::Published) && self.failed.is_empty()
    }
}

/// A condition, without what it has of its object and of the time.
struct Condition {
    name: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

/// The status of an object; `None` when it has that already. `refused` is what the agent that writes it says against it.
pub(super) fn status(object: &Object, refused: Option<&str>, nodes: &[OnNode<'_>], now: &str) -> Option<Value> {
    let there = nodes.iter().filter(|node| node.has_it()).count();
    let conditions = [accepted(refused), compiled(nodes), published(object, nodes, there)];
    let conditions: Vec<_> = conditions.iter().map(|condition| of(object, condition, now)).collect();
    let status = json!({
        "observedGeneration": object.generation,
        "published": format!("{there}/{}", nodes.len()),
        "conditions": conditions,
    });
    (status != object.status).then_some(status)
}

/// A condition of an object. It has been so since it became so.
fn of(object: &Object, condition: &Condition, now: &str) -> Value {
    let before = object.status["conditions"].as_array().into_iter().flatten();
    let mut same = before.filter(|before| before["type"] == condition.name && before["status"] == condition.status);
    let since = same.next().and_then(|before| before["lastTransitionTime"].as_str()).unwrap_or(now);
    json!({
        "type": condition.name,
        "status": condition.status,
        "reason": condition.reason,
        "message": cut(&condition.message, WORDS),
        "observedGeneration": object.generation,
        "lastTransitionTime": since,
    })
}

fn accepted(refused: Option<&str>) -> Condition {
    let (status, reason, message) = match refused {
        None => ("True", "Accepted", "it can be used as it is"),
        Some(why) => ("False", "Refused", why),
    };
    Condition { name: "Accepted", status, reason, message: message.to_owned() }
}

fn compiled(nodes: &[OnNode<'_>]) -> Condition {
    let against = nodes.iter().filter_map(|node| match &node.stands {
        Some(Stands::Refused(why)) => Some((node.node, why)),
        _ => None,
    });
    let against: Vec<_> = against.collect();
    let waiting = nodes.iter().filter(|node| node.stands != Some(Stands::Published));
    let waiting: Vec<_> = waiting.map(|node| node.node).collect();
    let (status, reason, message) = match (against.first(), waiting.as_slice()) {
        (Some((node, why)), _) => {
            let more = if against.len() > 1 { format!(" (and on {} more)", against.len() - 1) } else { String::new() };
            ("False", "Refused", format!("on {node}{more}: {why}"))
        }
        (None, []) if nodes.is_empty() => ("Unknown", "NoAgent", "no agent has said anything yet".to_owned()),
        (None, []) => ("True", "Compiled", "every node that has an agent can enforce it".to_owned()),
        (None, waiting) => ("Unknown", "Waiting", format!("not known yet of {}", names(waiting))),
    };
    Condition { name: "Compiled", status, reason, message }
}

fn published(object: &Object, nodes: &[OnNode<'_>], there: usize) -> Condition {
    let those = |which: &dyn Fn(&OnNode<'_>) -> bool| -> Vec<&str> {
        nodes.iter().filter(|node| which(node)).map(|node| node.node).collect()
    };
    let silent = those(&|node| node.stands.is_none());
    let failing = those(&|node| node.stands.is_some() && !node.failed.is_empty());
    let refusing = those(&|node| matches!(node.stands, Some(Stands::Refused(_))) && node.failed.is_empty());
    let watching = those(&|node| node.has_it() && node.observe);
    let (status, reason) = match () {
        () if nodes.is_empty() => ("Unknown", "NoAgent"),
        () if there == nodes.len() => ("True", "InForce"),
        () if !refusing.is_empty() => ("False", "Refused"),
        () if !failing.is_empty() => ("False", "PublishFailed"),
        () if !silent.is_empty() => ("False", "NoWord"),
        () => ("False", "Waiting"),
    };
    let mut message = format!("generation {} is in force on {there} of {} nodes", object.generation, nodes.len());
    if !silent.is_empty() {
        message.push_str(&format!("; no word from {}", names(&silent)));
    }
    if let Some(node) = nodes.iter().find(|node| failing.contains(&node.node)) {
        message.push_str(&format!("; publishing fails on {}: {}", names(&failing), node.failed));
    }
    if !refusing.is_empty() {
        message.push_str(&format!("; refused on {}", names(&refusing)));
    }
    if !watching.is_empty() {
        message.push_str(&format!("; nothing is dropped on {}, which only observes or is bypassed", names(&watching)));
    }
    Condition { name: "Published", status, reason, message }
}

fn names(nodes: &[&str]) -> String {
    match nodes.len().saturating_sub(NAMED) {
        0 => nodes.join(", "),
        more => format!("{} and {more} more", nodes[..NAMED].join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::kinds::{Key, OURS};

    fn object(status: Value) -> Object {
        let key = Key::new("shop".to_owned(), "a".to_owned());
        Object { kind: OURS[0], key, uid: "u".to_owned(), generation: 3, text: "".into(), status }
    }

    fn on(node: &str, stands: Option<Stands>) -> OnNode<'_> {
        OnNode { node, stands, failed: "", observe: false }
    }

    /// `status reason: message` of each condition.
    fn said(status: &Value) -> Vec<String> {
        let text = |condition: &Value| {
            let field = |name: &str| condition[name].as_str().unwrap().to_owned();
            format!("{} {}: {}", field("status"), field("reason"), field("message"))
        };
        status["conditions"].as_array().unwrap().iter().map(text).collect()
    }

    #[test]
    fn it_is_said_how_an_object_stands() {
        let why = || Some(Stands::Refused("no room".to_owned()));
        let there = || Some(Stands::Published);
        let of = |refused, nodes: &[OnNode<'_>]| {
            let status = status(&object(Value::Null), refused, nodes, "now").unwrap();
            [vec![status["published"].as_str().unwrap().to_owned()], said(&status)].concat()
        };
        let accepted = "True Accepted: it can be used as it is";
        assert_eq!(
            of(None, &[on("n1", there()), on("n2", there())]),
            [
                "2/2",
                accepted,
                "True Compiled: every node that has an agent can enforce it",
                "True InForce: generation 3 is in force on 2 of 2 nodes"
            ]
        );
        assert_eq!(
            of(None, &[on("n1", there()), on("n2", None), on("n3", Some(Stands::Waiting))]),
            [
                "1/3",
                accepted,
                "Unknown Waiting: not known yet of n2, n3",
                "False NoWord: generation 3 is in force on 1 of 3 nodes; no word from n2"
            ]
        );
        assert_eq!(
            of(None, &[on("n1", there()), on("n2", why()), on("n3", why())]),
            [
                "1/3",
                accepted,
                "False Refused: on n2 (and on 1 more): no room",
                "False Refused: generation 3 is in force on 1 of 3 nodes; refused on n2, n3"
            ]
        );
        assert_eq!(of(Some("spec: it is wrong"), &[on("n1", why())])[1], "False Refused: spec: it is wrong");
        assert_eq!(of(None, &[])[3], "Unknown NoAgent: generation 3 is in force on 0 of 0 nodes");
        let failing = OnNode { failed: "map is full", ..on("n2", there()) };
        assert_eq!(
            of(None, &[on("n1", there()), failing])[3],
            "False PublishFailed: generation 3 is in force on 1 of 2 nodes; publishing fails on n2: map is full"
        );
        let watching = OnNode { observe: true, ..on("n1", there()) };
        assert_eq!(
            of(None, &[watching])[3],
            "True InForce: generation 3 is in force on 1 of 1 nodes; nothing is dropped on n1, which only observes or is bypassed"
        );
        let many: Vec<_> = (1..=9).map(|number| format!("n{number}")).collect();
        let many: Vec<_> = many.iter().map(|node| on(node, None)).collect();
        assert!(of(None, &many)[3].ends_with("no word from n1, n2, n3 and 6 more"));
    }

    #[test]
    fn what_is_so_already_is_not_written_and_has_been_so_since_then() {
        let nodes = [on("n1", Some(Stands::Published))];
        let first = status(&object(Value::Null), None, &nodes, "then").unwrap();
        assert_eq!(status(&object(first.clone()), None, &nodes, "now"), None);
        let second = status(&object(first), None, &[on("n1", None)], "now").unwrap();
        let since: Vec<_> =
            second["conditions"].as_array().unwrap().iter().map(|one| &one["lastTransitionTime"]).collect();
        assert_eq!(since, ["then", "now", "now"]);
    }
}
