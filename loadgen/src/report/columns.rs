//! Rows of cells under each other, for a terminal.

/// How wide each column is: as its widest cell. All rows have as many cells.
pub(crate) fn widths(rows: &[Vec<String>]) -> Vec<usize> {
    let columns = rows.first().map_or(0, Vec::len);
    let widest = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    (0..columns).map(widest).collect()
}

/// A row as a line, two spaces between its cells and none at its end.
pub(crate) fn line(row: &[String], widths: &[usize]) -> String {
    let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
    cells.join("  ").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_stand_under_each_other() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let rows = [row(["what", "p99", ""]), row(["a", "1 µs", "x"]), row(["longer", "", ""])];
        let widths = widths(&rows);
        assert_eq!(widths, [6, 4, 1]);
        let lines: Vec<String> = rows.iter().map(|row| line(row, &widths)).collect();
        assert_eq!(lines, ["what    p99", "a       1 µs  x", "longer"]);
    }
}
