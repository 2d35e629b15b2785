//! Splits a query into words, quoted texts and signs.

use std::ops::Range;

use super::error::QueryError;

/// What a token is. `Sign` is one of the operators that are no words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What<'t> {
    Word(&'t str),
    Quoted(String),
    Sign(&'t str),
    Open,
    Close,
    OpenGpu,
    CloseGpu,
    Comma,
    End,
}

/// A token and its bytes in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token<'t> {
    pub(super) what: What<'t>,
    pub(super) at: Range<usize>,
}

/// Every token of `text`; the last one is [`What::End`].
pub(super) fn tokens(text: &str) -> Result<Vec<Token<'_>>, QueryError> {
    let mut tokens = Vec::new();
    let mut start = 0;
    while let Some(c) = text[start..].chars().next() {
        let rest = &text[start..];
        let single = |what| (what, c.len_utf8());
        let (what, len) = match c {
            c if c.is_whitespace() => {
                start += c.len_utf8();
                continue;
            }
            '(' => single(What::Open),
            ')' => single(What::Close),
            '[' => single(What::OpenGpu),
            ']' => single(What::CloseGpu),
            ',' => single(What::Comma),
            '"' | '\'' => quoted(text, start, c)?,
            '=' | '!' | '<' | '>' | '~' => sign(text, start)?,
            c if c.is_control() => {
                let message = format!("the character {} means nothing here", c.escape_unicode());
                return Err(QueryError::in_text(
                    text,
                    start..start + c.len_utf8(),
                    message,
                ));
            }
            _ => {
                let len = rest.find(ends_word).unwrap_or(rest.len());
                (What::Word(&rest[..len]), len)
            }
        };
        tokens.push(Token {
            what,
            at: start..start + len,
        });
        start += len;
    }
    tokens.push(Token {
        what: What::End,
        at: text.len()..text.len(),
    });
    Ok(tokens)
}

/// Whether no word goes on with this.
pub(super) fn ends_word(c: char) -> bool {
    c.is_whitespace() || c.is_control() || "()[],\"'=!<>~".contains(c)
}

fn sign(text: &str, start: usize) -> Result<(What<'_>, usize), QueryError> {
    let signs = ["==", "!=", "<=", ">=", "=", "<", ">", "~"];
    match signs
        .into_iter()
        .find(|sign| text[start..].starts_with(sign))
    {
        Some(sign) => Ok((What::Sign(&text[start..start + sign.len()]), sign.len())),
        None => Err(QueryError::in_text(
            text,
            start..start + 1,
            "`!` stands before `=` only; the opposite of a condition is `not …`",
        )),
    }
}

fn quoted(text: &str, start: usize, quote: char) -> Result<(What<'_>, usize), QueryError> {
    let mut value = String::new();
    let mut chars = text[start + 1..].char_indices();
    while let Some((offset, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            c if c == quote => return Ok((What::Quoted(value), offset + 2)),
            c => value.push(c),
        }
    }
    let message = format!("this quote is not closed: a {quote} is missing");
    Err(QueryError::in_text(text, start..start + 1, message))
}

impl What<'_> {
    /// The token as an error names it.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Word(text) | Self::Sign(text) => format!("`{text}`"),
            Self::Quoted(text) => format!("{text:?}"),
            Self::Open => "`(`".into(),
            Self::Close => "`)`".into(),
            Self::OpenGpu => "`[`".into(),
            Self::CloseGpu => "`]`".into(),
            Self::Comma => "`,`".into(),
            Self::End => "the end".into(),
        }
    }
}
