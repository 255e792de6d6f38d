//! Tables of the terminal, which fit into it: into 80 columns where the output is not a terminal.

use std::io::IsTerminal;

use comfy_table::{ContentArrangement, Table, TableStyle};

/// Columns where nobody tells how many there are.
const WIDTH: u16 = 80;

/// An empty table in one of comfy-table's styles, whose cells break where they would not fit.
pub(crate) fn table(style: TableStyle) -> Table {
    let mut table = Table::new();
    table.load_style(style).set_content_arrangement(ContentArrangement::Dynamic);
    if !std::io::stdout().is_terminal() {
        table.set_width(WIDTH);
    }
    table
}
