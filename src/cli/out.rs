//! How results reach people and programs: tables, JSON, YAML, marks; colours on a terminal only.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;

use serde::Serialize;
use serde_json::Value;

use super::error::CliError;

/// Form of a result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// More columns, full ids.
    Wide,
    /// JSON, for programs.
    Json,
    /// YAML, for programs.
    Yaml,
}

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Out {
    /// Form of results.
    pub format: Format,
    /// Ids only, no remarks.
    pub quiet: bool,
    /// Whether standard output is coloured.
    colour: bool,
}

/// Something shown in a table.
pub(crate) trait Row: Serialize {
    /// Column heads.
    fn head(wide: bool) -> Vec<&'static str>;
    /// Cells, as many as heads. They are cleaned before they are shown.
    fn cells(&self, wide: bool) -> Vec<String>;
    /// The one word that `--quiet` prints.
    fn id(&self) -> String;
}

impl Out {
    /// Output of this form; colours when the terminal and the user allow them.
    pub(crate) fn new(format: Format, quiet: bool, no_color: bool) -> Self {
        let wanted = !no_color && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Self {
            format,
            quiet,
            colour: wanted && io::stdout().is_terminal(),
        }
    }

    /// Whether results are for programs.
    pub(crate) fn is_machine(self) -> bool {
        matches!(self.format, Format::Json | Format::Yaml)
    }

    /// Whether progress may be drawn.
    pub(crate) fn is_live(self) -> bool {
        !self.quiet && !self.is_machine() && io::stderr().is_terminal()
    }

    /// Prints a list.
    pub(crate) fn list<T: Row>(self, rows: &[T]) -> Result<(), CliError> {
        if self.is_machine() {
            return self.value(&rows);
        }
        if self.quiet {
            return self.data(&rows.iter().map(|row| row.id() + "\n").collect::<String>());
        }
        let wide = self.format == Format::Wide;
        let head = T::head(wide).into_iter().map(str::to_owned).collect();
        let cells = rows
            .iter()
            .map(|row| row.cells(wide).iter().map(|cell| clean(cell)).collect());
        self.data(&columns(
            &std::iter::once(head).chain(cells).collect::<Vec<_>>(),
        ))
    }

    /// Prints one value for programs.
    pub(crate) fn value(self, value: &impl Serialize) -> Result<(), CliError> {
        let value = serde_json::to_value(value).map_err(io::Error::from)?;
        if self.format == Format::Yaml {
            let mut text = String::new();
            yaml(&mut text, &value, 0);
            self.data(&text)
        } else {
            self.data(&format!("{value:#}\n"))
        }
    }

    /// Prints facts about one thing: for programs as `value`, for people as lines, and with
    /// `--quiet` its `id` alone.
    pub(crate) fn facts(
        self,
        value: &impl Serialize,
        id: &str,
        lines: &[(&str, String)],
    ) -> Result<(), CliError> {
        if self.is_machine() {
            return self.value(value);
        }
        if self.quiet {
            return self.data(&format!("{id}\n"));
        }
        let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let text = lines.iter().fold(String::new(), |text, (name, fact)| {
            text + &format!("{name:width$}  {}\n", clean(fact))
        });
        self.data(&text)
    }

    /// Tells that something was done: programs get `value`, people the sentence.
    pub(crate) fn done(
        self,
        value: &impl Serialize,
        text: impl fmt::Display,
    ) -> Result<(), CliError> {
        if self.is_machine() {
            return self.value(value);
        }
        self.ok(text);
        Ok(())
    }

    /// Prints a result. It goes to standard output whole, or the command fails.
    #[expect(
        clippy::unused_self,
        reason = "whoever prints results has been given the output"
    )]
    pub(crate) fn data(self, text: &str) -> Result<(), CliError> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        Ok(stdout.flush()?)
    }

    /// Prints a remark for people: nothing depends on it, so a closed output is no error.
    pub(crate) fn remark(self, text: impl fmt::Display) {
        if !self.quiet && !self.is_machine() {
            let _ = writeln!(io::stdout(), "{text}").and_then(|()| io::stdout().flush());
        }
    }

    /// Prints a remark beside a container's output: to standard error, which is not the
    /// container's standard output.
    pub(crate) fn note(self, text: impl fmt::Display) {
        if !self.quiet && !self.is_machine() {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// A part of a remark's line, shown at once.
    pub(crate) fn part(self, text: impl fmt::Display) {
        if !self.quiet && !self.is_machine() {
            let mut stderr = io::stderr();
            let _ = write!(stderr, "{text}").and_then(|()| stderr.flush());
        }
    }

    /// A step that went well.
    pub(crate) fn ok(self, text: impl fmt::Display) {
        self.remark(format_args!("{} {text}", self.paint("32", "✔")));
    }

    /// A step that went not quite well.
    pub(crate) fn warn(self, text: impl fmt::Display) {
        self.remark(format_args!("{} {text}", self.paint("33", "!")));
    }

    /// A step that failed.
    pub(crate) fn fail(self, text: impl fmt::Display) {
        self.remark(format_args!("{} {text}", self.paint("31", "✘")));
    }

    fn paint(self, sgr: &str, text: &str) -> String {
        if self.colour {
            format!("\u{1b}[{sgr}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Lines of cells, each column as wide as its widest cell.
fn columns(lines: &[Vec<String>]) -> String {
    let width = |n: usize| {
        lines
            .iter()
            .filter_map(|l| l.get(n))
            .map(|c| c.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..).map_while(width).collect();
    let mut text = String::new();
    for line in lines {
        let padded = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        text += padded.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// `text` without what could steer a terminal: control characters (ESC among them) and the marks
/// that turn the writing direction. Line ends and tabs become spaces.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .filter_map(|c| match c {
            '\n' | '\t' => Some(' '),
            '\u{200e}'
            | '\u{200f}'
            | '\u{061c}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' => None,
            c => (!c.is_control()).then_some(c),
        })
        .collect()
}

/// Writes JSON as YAML blocks. Strings are written as JSON strings, which YAML 1.2 reads.
fn yaml(out: &mut String, value: &Value, indent: usize) {
    let pad = "  ".repeat(indent);
    match value {
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut block = String::new();
                yaml(&mut block, item, indent + 1);
                // The item's own indentation makes room for the dash.
                let _ = write!(out, "{pad}- {}", block.trim_start());
            }
        }
        Value::Object(fields) if !fields.is_empty() => {
            for (name, field) in fields {
                let nested = field.as_array().is_some_and(|a| !a.is_empty())
                    || field.as_object().is_some_and(|o| !o.is_empty());
                if nested {
                    let _ = writeln!(out, "{pad}{}:", key(name));
                    yaml(out, field, indent + 1);
                } else {
                    let _ = writeln!(out, "{pad}{}: {field}", key(name));
                }
            }
        }
        scalar => {
            let _ = writeln!(out, "{pad}{scalar}");
        }
    }
}

fn key(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
            .contains(&name.to_ascii_lowercase().as_str());
    if plain {
        name.to_owned()
    } else {
        Value::from(name).to_string()
    }
}

/// An address as people know it: a socket for both families shows IPv4 peers as `::ffff:…`.
pub(crate) fn address(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// `1 GPU`, `2 GPUs`.
pub(crate) fn counted(n: usize, thing: &str) -> String {
    let s = if n == 1 { "" } else { "s" };
    format!("{n} {thing}{s}")
}

/// An amount of memory, exactly, in the unit that makes it shortest: `2GiB`, `80GB`, `1000001B`.
pub(crate) fn exact_size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 8] = [
        ("TiB", 1 << 40),
        ("TB", 1_000_000_000_000),
        ("GiB", 1 << 30),
        ("GB", 1_000_000_000),
        ("MiB", 1 << 20),
        ("MB", 1_000_000),
        ("KiB", 1 << 10),
        ("kB", 1_000),
    ];
    let whole = |(_, factor): &&(&str, u64)| bytes >= *factor && bytes.is_multiple_of(*factor);
    UNITS.iter().find(whole).map_or_else(
        || format!("{bytes}B"),
        |(unit, factor)| format!("{}{unit}", bytes / factor),
    )
}

/// `0.4s`, `12s`, `3m`, `2h`, `5d`: ages and lasting times.
pub(crate) fn span(time: std::time::Duration) -> String {
    let secs = time.as_secs();
    match secs {
        0..10 => format!("{:.1}s", time.as_secs_f64()),
        10..120 => format!("{secs}s"),
        120..7_200 => format!("{}m", secs / 60),
        7_200..172_800 => format!("{}h", secs / 3_600),
        _ => format!("{}d", secs / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_of_nested_values() {
        let value = serde_json::json!({
            "name": "a: b", "n": 1, "none": null, "empty": [],
            "list": [{"x": 1, "y": ["p", "q"]}, {"x": 2, "y": []}], "on": {"k k": true},
        });
        let mut text = String::new();
        yaml(&mut text, &value, 0);
        insta::assert_snapshot!(text);
    }

    #[test]
    fn columns_are_as_wide_as_they_must() {
        let lines = [["A", "BB"], ["größe", "x"]].map(|l| l.map(str::to_owned).to_vec());
        assert_eq!(columns(&lines), "A      BB\ngröße  x\n");
        assert_eq!(columns(&[]), "");
    }

    #[test]
    fn cleaning_keeps_letters_and_drops_commands() {
        assert_eq!(clean("größe\u{1b}[31m\u{202e}x\r\ny"), "größe[31mx y");
    }

    #[test]
    fn amounts_are_exact_and_short() {
        let text = [2 << 30, 80_000_000_000, 1536 << 20, 1_000_001, 0].map(exact_size);
        assert_eq!(text, ["2GiB", "80GB", "1536MiB", "1000001B", "0B"]);
        assert_eq!(
            (counted(1, "GPU"), counted(2, "GPU")),
            ("1 GPU".into(), "2 GPUs".into())
        );
    }

    #[test]
    fn spans() {
        let text = |ms| span(std::time::Duration::from_millis(ms));
        assert_eq!(text(420), "0.4s");
        assert_eq!(text(59_900), "59s");
        assert_eq!(text(3_600_000), "60m");
        assert_eq!(text(86_400_000), "24h");
        assert_eq!(text(864_000_000), "10d");
    }
}
