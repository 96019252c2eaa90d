//! Words, colours and tables. Colours go away by themselves when nobody sees them: standard output is no terminal, or `NO_COLOR` is set.

use std::{
    io::{IsTerminal as _, stdout},
    time::Instant,
};

use anstream::{eprintln, println};
use anstyle::{AnsiColor, Color, Style};
use textwrap::{Options, WordSeparator, WordSplitter, termwidth, wrap};

/// Mark of what is allowed, or as expected.
pub(crate) const GOOD: &str = "✓";
/// Mark of what is blocked.
pub(crate) const SHUT: &str = "✗";
/// Mark of what is not as it should be.
pub(crate) const BAD: &str = "WRONG";

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const GREEN: Style = AnsiColor::Green.on_default();
const RED: Style = AnsiColor::Red.on_default();
const CYAN: Style = AnsiColor::Cyan.on_default();
const ALARM: Style = AnsiColor::White.on_default().bg_color(Some(Color::Ansi(AnsiColor::Red))).bold();

/// Widest text on a wide terminal: longer lines are hard to read.
const WIDEST: usize = 132;

/// Head of the whole.
pub(crate) fn title(text: &str) {
    println!("\n{BOLD}{text}{BOLD:#}");
}

/// Head of a step.
pub(crate) fn step(number: u32, text: &str) {
    println!("\n{CYAN}━━ {number} ━━{CYAN:#} {BOLD}{text}{BOLD:#}");
}

/// Plain words.
pub(crate) fn say(text: &str) {
    for line in lines(text, "  ") {
        println!("{line}");
    }
}

/// A line between paragraphs.
pub(crate) fn blank() {
    println!();
}

/// Text that stays as it is.
pub(crate) fn verbatim(text: &str) {
    for line in text.lines() {
        println!("  {line}");
    }
}

/// Something that took its time.
pub(crate) fn took(text: &str, since: Instant) {
    println!("  {GREEN}{GOOD}{GREEN:#} {text} {DIM}({:.1} s){DIM:#}", since.elapsed().as_secs_f32());
}

/// Something that is as it should be, or is not.
pub(crate) fn check(text: &str, holds: bool) {
    let (style, mark) = if holds { (GREEN, GOOD) } else { (ALARM, BAD) };
    for (index, line) in lines(&format!("{mark} {text}"), "    ").iter().enumerate() {
        match line.trim_start().strip_prefix(mark) {
            Some(rest) if index == 0 => println!("  {style}{mark}{style:#}{rest}"),
            _ => println!("{line}"),
        }
    }
}

/// A verdict with its reason: the text that begins with `ALLOWED` or `BLOCKED`.
pub(crate) fn verdict(text: &str) {
    let style = if text.starts_with("ALLOWED") { GREEN } else { RED };
    for (index, line) in lines(text, "          ").iter().enumerate() {
        match line.trim_start().split_once(' ') {
            Some((word, rest)) if index == 0 => println!("  {style}{word}{style:#} {rest}"),
            _ => println!("{line}"),
        }
    }
}

/// The wire does not do what the policy says.
pub(crate) fn alarm(text: &str) {
    println!("  {ALARM} {text} {ALARM:#}");
}

/// What ends the whole before its end.
pub(crate) fn failure(error: &anyhow::Error) {
    eprintln!("{ALARM}bulkhead-demo:{ALARM:#} {error:#}");
}

/// A policy with the numbers of its lines.
pub(crate) fn policy(text: &str) {
    for (number, line) in (1..).zip(text.lines()) {
        let (code, comment) = line.split_at(line.find('#').unwrap_or(line.len()));
        println!("  {DIM}{number:>3} │{DIM:#} {code}{DIM}{comment}{DIM:#}");
    }
}

/// A line of a file that was changed.
pub(crate) fn changed(number: usize, before: &str, after: &str) {
    removed(number, before);
    added(number, after);
}

/// A line that was added to a file.
pub(crate) fn added(number: usize, line: &str) {
    println!("  {DIM}{number:>3} │{DIM:#} {GREEN}+ {line}{GREEN:#}");
}

/// A line that was taken out of a file.
pub(crate) fn removed(number: usize, line: &str) {
    println!("  {DIM}{number:>3} │{DIM:#} {RED}- {line}{RED:#}");
}

/// A line of a metrics page, as it is.
pub(crate) fn sample(line: &str) {
    let (series, value) = line.rsplit_once(' ').unwrap_or((line, ""));
    println!("  {DIM}{series}{DIM:#} {value}");
}

/// Commands that somebody may type, each with what it does.
pub(crate) fn commands(commands: &[(String, &str)]) {
    // Long ones do not push the others' comments out of sight.
    const LONG: usize = 48;
    let lengths = commands.iter().map(|(command, _)| command.len());
    let width = lengths.filter(|length| *length <= LONG).max().unwrap_or(0);
    for (command, what) in commands {
        if what.is_empty() {
            println!("  {CYAN}{command}{CYAN:#}");
        } else {
            println!("  {CYAN}{command:<width$}{CYAN:#}  {DIM}# {what}{DIM:#}");
        }
    }
}

/// A table; the first row is its head. A cell is coloured by the mark with which it begins.
pub(crate) fn table(rows: &[Vec<String>]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    for (index, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let style = match cell.split(' ').next() {
                _ if index == 0 => DIM,
                Some(GOOD) => GREEN,
                Some(SHUT) => RED,
                Some(BAD) => ALARM,
                _ => Style::new(),
            };
            let space = " ".repeat(width - cell.chars().count());
            line.push_str(&format!("  {style}{cell}{style:#}{space}"));
        }
        println!("{}", line.trim_end());
    }
}

/// Wrapped for a terminal, each line as it is for a file. All lines but the first begin with `indent`.
fn lines(text: &str, indent: &str) -> Vec<String> {
    let width = if stdout().is_terminal() { termwidth().clamp(60, WIDEST) } else { usize::MAX };
    let options = Options::new(width)
        .initial_indent("  ")
        .subsequent_indent(indent)
        .word_separator(WordSeparator::AsciiSpace)
        .word_splitter(WordSplitter::NoHyphenation);
    text.lines().flat_map(|line| wrap(line, &options)).map(Into::into).collect()
}
