//! Which labels somebody has to have: equalities as Guards and Intents write them, and the set-based requirements of Kubernetes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    iter::Map,
    mem, slice,
    sync::Arc,
};

/// Labels of a namespace, workload or node, in order, each once. A large cluster has very many: they take no more than what is in them, which a map of so few
/// would several times.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Box<[Label]>);

impl Labels {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn find(&self, label: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| (**known).cmp(label))
    }

    /// Value of a label.
    #[must_use]
    pub fn get(&self, label: &str) -> Option<&str> {
        self.find(label).ok().map(|at| &*self.0[at].1)
    }

    /// Whether there is one.
    #[must_use]
    pub fn contains(&self, label: &str) -> bool {
        self.find(label).is_ok()
    }

    /// Whether there is none at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Gives a label a value.
    pub fn insert(&mut self, label: impl Into<Box<str>>, value: impl Into<Box<str>>) {
        let (label, value) = (label.into(), value.into());
        match self.find(&label) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => {
                let mut all = mem::take(&mut self.0).into_vec();
                all.reserve_exact(1);
                all.insert(at, (label, value));
                self.0 = all.into();
            }
        }
    }

    /// Each with its value, in their order.
    pub fn iter(&self) -> Iter<'_> {
        self.into_iter()
    }
}

type Label = (Box<str>, Box<str>);
/// Labels and their values.
pub type Iter<'a> = Map<slice::Iter<'a, Label>, fn(&'a Label) -> (&'a str, &'a str)>;

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<'a> IntoIterator for &'a Labels {
    type Item = (&'a str, &'a str);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.0.iter().map(|(label, value)| (&**label, &**value))
    }
}

impl<L: Into<Box<str>>, V: Into<Box<str>>> Extend<(L, V)> for Labels {
    fn extend<I: IntoIterator<Item = (L, V)>>(&mut self, labels: I) {
        labels.into_iter().for_each(|(label, value)| self.insert(label, value));
    }
}

impl From<BTreeMap<String, String>> for Labels {
    fn from(labels: BTreeMap<String, String>) -> Self {
        Self(labels.into_iter().map(|(label, value)| (label.into(), value.into())).collect())
    }
}

/// Of a label that is there several times the last one counts.
impl<L: Into<Box<str>>, V: Into<Box<str>>> FromIterator<(L, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (L, V)>>(labels: I) -> Self {
        let labels = labels.into_iter().map(|(label, value)| (label.into(), value.into()));
        Self(labels.collect::<BTreeMap<_, _>>().into_iter().collect())
    }
}

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
    pub fn equal(labels: impl IntoIterator<Item = (impl AsRef<str>, impl AsRef<str>)>) -> Self {
        labels.into_iter().map(|(label, value)| Requirement::is(label.as_ref(), value.as_ref())).collect()
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
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn labels_are_a_map(first in prop::collection::vec(("[a-d]", "[a-z]"), 0..6), told in prop::collection::vec(("[a-f]", "[a-z]"), 0..6)) {
            let mut labels: Labels = first.iter().cloned().collect();
            let mut map: BTreeMap<String, String> = first.into_iter().collect();
            for (label, value) in told {
                prop_assert_eq!(labels.get(&label), map.get(&label).map(String::as_str));
                prop_assert_eq!(labels.contains(&label), map.contains_key(&label));
                labels.insert(&*label, &*value);
                map.insert(label, value);
                prop_assert!(labels.iter().eq(map.iter().map(|(label, value)| (&**label, &**value))));
            }
            let mut more = Labels::from_iter([("c", "before"), ("g", "before")]);
            more.extend(&labels);
            for label in ["c", "g"] {
                prop_assert_eq!(more.get(label), labels.get(label).or(Some("before")));
            }
            prop_assert_eq!(labels.is_empty(), map.is_empty());
            prop_assert_eq!(format!("{labels:?}"), format!("{map:?}"));
        }
    }

    #[test]
    fn requirements_mean_what_kubernetes_means() {
        let labels = Labels::from_iter([("app", "web")]);
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
