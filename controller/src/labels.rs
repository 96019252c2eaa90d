//! Which labels somebody has to have: equalities as Guards and Intents write them, and the set-based requirements of Kubernetes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

/// Labels of a namespace, workload or node.
pub type Labels = BTreeMap<String, String>;

/// Label of every namespace: its name.
pub const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Requirements, all of which must be fulfilled; without any everybody fulfils them. Equal ones are equal however they were written: each is there once,
/// in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(Arc<[Requirement]>);

/// What is required of one label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Requirement {
    /// It is there with one of these values.
    In(String, BTreeSet<String>),
    /// It is not there, or has none of these values.
    NotIn(String, BTreeSet<String>),
    /// It is there.
    Exists(String),
    /// It is not there.
    Missing(String),
}

impl Selector {
    /// Nothing is required.
    #[must_use]
    pub fn everybody() -> Self {
        Self::default()
    }

    /// All of these.
    #[must_use]
    pub fn equal(labels: &Labels) -> Self {
        labels.iter().map(|(label, value)| Requirement::is(label, value)).collect()
    }

    /// Whether nothing is required.
    #[must_use]
    pub fn is_everybody(&self) -> bool {
        self.0.is_empty()
    }

    /// Its requirements in their order.
    pub fn requirements(&self) -> impl Iterator<Item = &Requirement> {
        self.0.iter()
    }

    /// Whether labels fulfil all.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.holds(labels))
    }
}

impl FromIterator<Requirement> for Selector {
    fn from_iter<I: IntoIterator<Item = Requirement>>(requirements: I) -> Self {
        let each: BTreeSet<_> = requirements.into_iter().collect();
        Self(each.into_iter().collect())
    }
}

impl Requirement {
    /// The label has this value.
    #[must_use]
    pub fn is(label: &str, value: &str) -> Self {
        Self::In(label.to_owned(), BTreeSet::from([value.to_owned()]))
    }

    /// The label that it is about.
    #[must_use]
    pub fn label(&self) -> &str {
        match self {
            Self::In(label, _) | Self::NotIn(label, _) | Self::Exists(label) | Self::Missing(label) => label,
        }
    }

    /// Whether labels fulfil it.
    #[must_use]
    pub fn holds(&self, labels: &Labels) -> bool {
        let found = labels.get(self.label());
        match self {
            Self::In(_, values) => found.is_some_and(|value| values.contains(value)),
            Self::NotIn(_, values) => found.is_none_or(|value| !values.contains(value)),
            Self::Exists(_) => found.is_some(),
            Self::Missing(_) => found.is_none(),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |values: &BTreeSet<String>| values.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
        match self {
            Self::In(label, values) if values.len() == 1 => write!(f, "{label}={}", list(values)),
            Self::In(label, values) => write!(f, "{label} in ({})", list(values)),
            Self::NotIn(label, values) => write!(f, "{label} not in ({})", list(values)),
            Self::Exists(label) => f.write_str(label),
            Self::Missing(label) => write!(f, "!{label}"),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{requirement}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_mean_what_kubernetes_means() {
        let labels = Labels::from([("app".to_owned(), "web".to_owned())]);
        let values = |values: &[&str]| values.iter().map(ToString::to_string).collect();
        for (requirement, holds) in [
            (Requirement::is("app", "web"), true),
            (Requirement::In("app".into(), values(&["a", "b"])), false),
            (Requirement::NotIn("app".into(), values(&["a"])), true),
            (Requirement::NotIn("app".into(), values(&["web"])), false),
            (Requirement::NotIn("tier".into(), values(&["a"])), true),
            (Requirement::Exists("app".into()), true),
            (Requirement::Exists("tier".into()), false),
            (Requirement::Missing("tier".into()), true),
            (Requirement::Missing("app".into()), false),
        ] {
            assert_eq!(requirement.holds(&labels), holds, "{requirement}");
        }
        assert!(Selector::everybody().matches(&labels));
        let both: Selector = [Requirement::is("app", "web"), Requirement::Exists("tier".into())].into_iter().collect();
        assert!(!both.matches(&labels));
        assert_eq!(both.to_string(), "app=web,tier");
    }
}
