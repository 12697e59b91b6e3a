//! Tables for people: columns as wide as they need to be, two blanks between them.

/// Lays rows out under their heads. The last column is not padded.
pub(super) fn layout(heads: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heads.iter().map(|head| head.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    let mut text = line(&heads, &widths);
    for row in rows {
        text.push('\n');
        text.push_str(&line(row, &widths));
    }
    text
}

fn line(cells: &[String], widths: &[usize]) -> String {
    let mut line = String::new();
    for (cell, width) in cells.iter().zip(widths) {
        // What a program reported must not move the cursor or colour the terminal.
        let cell: String =
            cell.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        line.push_str(&format!("{cell:width$}  "));
    }
    line.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows =
            [vec!["a".to_owned(), "x".to_owned()], vec!["long-one".to_owned(), String::new()]];
        assert_eq!(layout(&["NAME", "B"], &rows), "NAME      B\na         x\nlong-one");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert!(!layout(&["A"], &[vec!["\u{1b}[2J".to_owned()]]).contains('\u{1b}'));
    }
}
