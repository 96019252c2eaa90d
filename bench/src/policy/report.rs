//! Figures as a table and as JSON.

use std::{collections::BTreeSet, fmt};

use anyhow::Result;
use serde_json::json;

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Micros,
    Mebibytes,
    Addresses,
    Writes,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Micros => "us",
            Self::Mebibytes => "MiB",
            Self::Addresses => "addresses",
            Self::Writes => "writes",
        })
    }
}

/// One case in one cluster.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) case: String,
    pub(crate) workloads: u32,
    pub(crate) unit: Unit,
    /// Ascending, never empty.
    values: Vec<f64>,
    target: Option<f64>,
}

impl Figure {
    pub(crate) fn new(case: &str, workloads: u32, unit: Unit, mut values: Vec<f64>, target: Option<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self { case: case.to_owned(), workloads, unit, values, target }
    }

    pub(crate) fn median(&self) -> f64 {
        self.values.get(self.values.len() / 2).copied().unwrap_or_default()
    }

    fn most(&self) -> f64 {
        self.values.last().copied().unwrap_or_default()
    }

    fn verdict(&self) -> Option<&'static str> {
        self.target.map(|target| if self.median() <= target { "met" } else { "missed" })
    }
}

/// Cases in the order in which they were measured.
pub(crate) fn cases(figures: &[Figure]) -> Vec<&str> {
    let mut seen = BTreeSet::new();
    figures.iter().map(|figure| figure.case.as_str()).filter(|case| seen.insert(*case)).collect()
}

fn number(value: f64) -> String {
    if value >= 100.0 || value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

/// One line for each case: of each cluster the median, and in brackets the worst; the target, and whether the medians meet it.
pub(crate) fn print(figures: &[Figure], smoke: bool) {
    let sizes: BTreeSet<u32> = figures.iter().map(|figure| figure.workloads).collect();
    print!("{:<32} {:<9}", "case", "unit");
    sizes.iter().for_each(|size| print!(" {:>20}", format!("{size} workloads")));
    println!(" {:>8}", "target");
    for case in cases(figures) {
        let of_case: Vec<_> = figures.iter().filter(|figure| figure.case == case).collect();
        let Some(first) = of_case.first() else { continue };
        print!("{case:<32} {:<9}", first.unit);
        for size in &sizes {
            let figure = of_case.iter().find(|figure| figure.workloads == *size);
            let text = figure.map(|figure| format!("{} ({})", number(figure.median()), number(figure.most())));
            print!(" {:>20}", text.unwrap_or_default());
        }
        print!(" {:>8}", first.target.map(number).unwrap_or_default());
        let verdicts: BTreeSet<_> = of_case.iter().filter_map(|figure| figure.verdict()).collect();
        println!(" {}", if smoke { "" } else { verdicts.last().copied().unwrap_or_default() });
    }
}

/// One object a line.
pub(crate) fn json(figures: &[Figure]) -> Result<String> {
    let mut text = String::new();
    for figure in figures {
        let object = json!({
            "suite": "policy",
            "case": figure.case,
            "workloads": figure.workloads,
            "unit": figure.unit.to_string(),
            "median": figure.median(),
            "most": figure.most(),
            "runs": figure.values.len(),
            "target": figure.target,
            "verdict": figure.verdict(),
        });
        text += &serde_json::to_string(&object)?;
        text.push('\n');
    }
    Ok(text)
}
