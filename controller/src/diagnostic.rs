//! What is wrong with an input: where, what, and how to mend it.

use std::{fmt, ops::Deref, sync::Arc};

use miette::{LabeledSpan, NamedSource, SourceCode};

/// A file's name and text.
pub type Source = NamedSource<String>;

/// Makes a [`Source`].
#[must_use]
pub fn source(name: impl AsRef<str>, text: impl Into<String>) -> Arc<Source> {
    Arc::new(NamedSource::new(name, text.into()))
}

/// A place in a file. Shared, since it goes with what was read there.
#[derive(Clone)]
pub struct Place(Arc<Stretch>);

/// Some of a text.
pub struct Stretch {
    source: Arc<Source>,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// Bytes from the start of the text.
    offset: u32,
    /// Bytes.
    len: u32,
}

impl Place {
    /// Bytes `offset..offset + len` of a text, which is line `line` and column `column`.
    pub(crate) fn new(source: &Arc<Source>, line: u32, column: u32, offset: usize, len: usize) -> Self {
        let end = source.inner().len();
        let offset = offset.min(end);
        // A text of 4 GiB is not read.
        let narrow = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        Self(Arc::new(Stretch {
            source: Arc::clone(source),
            line: line.max(1),
            column: column.max(1),
            offset: narrow(offset),
            len: narrow(len.min(end - offset)),
        }))
    }

    /// The start of a file.
    #[must_use]
    pub fn start(source: &Arc<Source>) -> Self {
        Self::new(source, 1, 1, 0, 0)
    }

    /// Name of the file.
    #[must_use]
    pub fn file(&self) -> &str {
        self.source.name()
    }

    /// Whether its line and those beside it are short enough to be shown. A program may write all that it has to say into one line.
    fn is_short(&self) -> bool {
        const MOST: usize = 2000;
        let (before, after) = self.source.inner().as_bytes().split_at(self.offset as usize);
        let lines = |bytes: &mut dyn Iterator<Item = &u8>| bytes.take(MOST).filter(|byte| **byte == b'\n').count();
        (before.len() < MOST || lines(&mut before.iter().rev()) > 1)
            && (after.len() < MOST || lines(&mut after.iter()) > 1)
    }

    /// How many bytes it has.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// The file.
    pub(crate) fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// Whether it is in this very text, whatever its name.
    pub(crate) fn is_in(&self, source: &Arc<Source>) -> bool {
        Arc::ptr_eq(&self.source, source)
    }

    /// `file:line`, the form in which rules carry it.
    #[must_use]
    pub fn origin(&self) -> String {
        format!("{}:{}", self.file(), self.line)
    }
}

impl Deref for Place {
    type Target = Stretch;

    fn deref(&self) -> &Stretch {
        &self.0
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file(), self.line, self.column)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        (self.file(), self.line, self.column) == (other.file(), other.line, other.column)
    }
}

impl Eq for Place {}

/// How bad a [`Diagnostic`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The input is used; somebody should look.
    Warning,
    /// The input is refused.
    Error,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad.
    pub severity: Severity,
    /// Where; `None` when no file is to blame.
    pub place: Option<Place>,
    /// What.
    pub message: String,
    /// How to mend it.
    pub help: Option<String>,
    /// Other places that matter, and why.
    pub notes: Vec<(Place, String)>,
    /// It is wrong for this node alone: another one may use it as it is.
    pub is_local: bool,
}

impl Diagnostic {
    /// An error at a place.
    #[must_use]
    pub fn error(place: &Place, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            place: Some(place.clone()),
            message: message.into(),
            help: None,
            notes: Vec::new(),
            is_local: false,
        }
    }

    /// An error that no file is to blame for.
    #[must_use]
    pub fn nowhere(message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            place: None,
            message: message.into(),
            help: None,
            notes: Vec::new(),
            is_local: false,
        }
    }

    /// A warning at a place.
    #[must_use]
    pub fn warning(place: &Place, message: impl Into<String>) -> Self {
        Self::error(place, message).as_warning()
    }

    /// The same, and nothing is kept from being used for it.
    #[must_use]
    pub fn as_warning(self) -> Self {
        Self { severity: Severity::Warning, ..self }
    }

    /// The same, wrong for this node alone.
    #[must_use]
    pub fn as_local(self) -> Self {
        Self { is_local: true, ..self }
    }

    /// Adds how to mend it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds another place that matters.
    #[must_use]
    pub fn note(mut self, place: &Place, note: impl Into<String>) -> Self {
        self.notes.push((place.clone(), note.into()));
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        if self.severity == Severity::Warning {
            f.write_str("warning: ")?;
        }
        f.write_str(&self.message)?;
        for (place, note) in &self.notes {
            write!(f, "\n  {place}: {note}")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}

/// A [`Diagnostic`] as `miette` draws it: the place is drawn, so that it is not part of the message.
#[derive(Debug)]
pub struct Drawn(Diagnostic);

impl fmt::Display for Drawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.place {
            Some(place) if !place.is_short() => write!(f, "{place}: {}", self.0.message),
            _ => f.write_str(&self.0.message),
        }
    }
}

impl std::error::Error for Drawn {}

impl miette::Diagnostic for Drawn {
    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.0.severity {
            Severity::Warning => miette::Severity::Warning,
            Severity::Error => miette::Severity::Error,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        let mut lines: Vec<String> = self.0.notes.iter().map(|(place, note)| format!("{place}: {note}")).collect();
        lines.extend(self.0.help.clone());
        (!lines.is_empty()).then(|| Box::new(lines.join("\n")) as _)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.0.place.as_ref().filter(|place| place.is_short()).map(|place| &*place.source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let place = self.0.place.as_ref().filter(|place| place.is_short())?;
        Some(Box::new(std::iter::once(LabeledSpan::new(
            Some("here".to_owned()),
            place.offset as usize,
            place.len as usize,
        ))))
    }
}

impl From<Diagnostic> for Drawn {
    fn from(diagnostic: Diagnostic) -> Self {
        Self(diagnostic)
    }
}

/// All that is wrong with an input, in the order in which it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl Diagnostics {
    /// Adds one.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.0.push(diagnostic);
    }

    /// Adds those of a failed step and goes on without its result.
    pub fn take<T>(&mut self, result: Result<T, Self>) -> Option<T> {
        result.map_err(|diagnostics| self.0.extend(diagnostics.0)).ok()
    }

    /// `value` unless an error was found.
    ///
    /// # Errors
    /// Self.
    pub fn or<T>(self, value: T) -> Result<T, Self> {
        if self.0.iter().any(|diagnostic| diagnostic.severity == Severity::Error) { Err(self) } else { Ok(value) }
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(diagnostic: Diagnostic) -> Self {
        Self(vec![diagnostic])
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{diagnostic}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// Nearest names to one that nobody has: at most three, nearest first, and none that shares too little with it.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let far = (name.chars().count() / 3).max(1) + 1;
    let mut found: Vec<_> =
        known.into_iter().map(|candidate| (strsim::osa_distance(name, candidate), candidate)).collect();
    found.retain(|&(distance, candidate)| distance <= far && distance < candidate.chars().count());
    found.sort_unstable();
    found.dedup();
    found.into_iter().take(3).map(|(_, candidate)| candidate).collect()
}

/// A question about the nearest names, or what there is to choose from.
pub(crate) fn suggest<'a>(name: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    let near = nearest(name, known.clone());
    if !near.is_empty() {
        return format!("did you mean {}?", list(&near));
    }
    let mut all: Vec<&str> = known.into_iter().collect();
    all.sort_unstable();
    all.dedup();
    match all.len() {
        0 => "there is none to choose from".to_owned(),
        n if n <= 8 => format!("there are {}", list(&all)),
        n => format!("there are {}, and {} more", list(&all[..8]), n - 8),
    }
}

fn list(names: &[&str]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        [head @ .., last] => format!("{} or {last}", head.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_names_are_near_and_nearest_first() {
        let known = ["cart", "card", "payments", "db"];
        assert_eq!(nearest("crat", known), ["cart", "card"]);
        assert_eq!(nearest("paymnets", known), ["payments"]);
        assert!(nearest("x", known).is_empty(), "a name of two letters is not near to one of one letter");
        assert_eq!(suggest("zebra", known), "there are `card`, `cart`, `db` or `payments`");
    }

    #[test]
    fn a_place_stays_inside_its_text() {
        let text = source("a.yaml", "abc");
        let place = Place::new(&text, 0, 0, 4_294_967_295, 7);
        assert_eq!((place.line, place.column, place.offset, place.len), (1, 1, 3, 0));
    }
}
