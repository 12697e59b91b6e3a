//! How each figure grows with the number of nodes.

use super::Run;
use crate::cli::table;
use crate::sim::report::Figure;

/// Lays the figures of runs with ever more nodes side by side. Beside each figure stands the power of
/// the number of nodes that it has grown with since the size before: 0 not at all, 1 in proportion.
pub(super) fn shown(runs: &[Run]) -> String {
    let columns = columns(runs);
    let mut heads = vec!["FIGURE".to_owned()];
    for (place, (nodes, _)) in columns.iter().enumerate() {
        heads.push(format!("{nodes} NODES"));
        if place > 0 {
            heads.push("GROWS BY".to_owned());
        }
    }
    let names: Vec<Figure> =
        columns.first().map(|(_, figures)| figures.clone()).unwrap_or_default();
    let rows: Vec<Vec<String>> = names
        .iter()
        .map(|figure| {
            let value = |figures: &[Figure]| {
                figures.iter().find(|f| f.name == figure.name).map(|figure| figure.value)
            };
            let mut cells = vec![format!("{} {}", figure.name, figure.unit)];
            let mut before: Option<(usize, f64)> = None;
            for (nodes, figures) in &columns {
                let value = value(figures);
                cells.push(value.map_or_else(|| "-".to_owned(), number));
                if let Some(before) = before {
                    cells.push(
                        value.and_then(|value| power(before, (*nodes, value))).unwrap_or_default(),
                    );
                }
                before = Some((*nodes, value.unwrap_or(0.0)));
            }
            cells
        })
        .collect();
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    table::layout(&heads, &rows)
}

/// The first run of each size.
fn columns(runs: &[Run]) -> Vec<(usize, Vec<Figure>)> {
    let mut columns: Vec<(usize, Vec<Figure>)> = Vec::new();
    for run in runs {
        let Ok(report) = &run.outcome else { continue };
        if columns.last().is_none_or(|(nodes, _)| *nodes != report.nodes) {
            let mut figures = report.figures();
            let simulated = report.lasted.as_secs_f64().max(1e-6);
            let took = run.took.as_secs_f64();
            figures.push(Figure { name: "real time", value: took, unit: "s" });
            figures.push(Figure { name: "real per simulated", value: took / simulated, unit: "" });
            figures.push(Figure {
                name: "memory",
                value: run.memory as f64 / (1 << 20) as f64,
                unit: "MiB",
            });
            columns.push((report.nodes, figures));
        }
    }
    columns
}

/// Says with which power of the size a figure has grown.
fn power((n, before): (usize, f64), (m, after): (usize, f64)) -> Option<String> {
    if before <= 0.0 || after <= 0.0 || n == m {
        return None;
    }
    let power = (after / before).ln() / (m as f64 / n as f64).ln();
    Some(format!("n^{power:.2}"))
}

fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_grows_by_a_power_of_the_size() {
        assert_eq!(power((100, 2.0), (1_000, 20.0)).as_deref(), Some("n^1.00"));
        assert_eq!(power((100, 2.0), (1_000, 200.0)).as_deref(), Some("n^2.00"));
        assert_eq!(power((100, 2.0), (1_000, 2.0)).as_deref(), Some("n^0.00"));
        assert_eq!(power((100, 0.0), (1_000, 2.0)), None);
    }
}
