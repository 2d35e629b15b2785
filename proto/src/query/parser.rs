//! Reads the text form by recursive descent. Recursion happens at `not`, `(` and `[` only, where
//! the depth is counted, so that no text can exhaust the stack.

use std::ops::Range;

use super::ast::{NodeLeaf, Raw, Tree, group};
use super::error::QueryError;
use super::field::GpuField;
use super::leaf::{Leaf, Part, Written, count};
use super::lexer::{Token, What, tokens};
use super::value::{Op, Test};
use super::{MAX_DEPTH, MAX_TERMS};
use crate::limits::MAX_QUERY;
use crate::units::ByteSize;

type Parsed<T> = Result<T, QueryError>;

/// Reads a whole query.
pub(super) fn parse(text: &str) -> Parsed<Tree<NodeLeaf>> {
    if text.len() > MAX_QUERY {
        let message = format!(
            "a query has at most {MAX_QUERY} bytes, this one {}",
            text.len()
        );
        return Err(QueryError::in_text("", 0..0, message));
    }
    let mut parser = Parser {
        text,
        tokens: tokens(text)?,
        next: 0,
        depth: 0,
        terms: 0,
    };
    if parser.peek() == &What::End {
        return Ok(Tree::And(Vec::new()));
    }
    let tree = parser.list::<Raw>()?;
    match parser.peek() {
        What::End => Ok(group(tree)),
        _ => Err(parser.expected("`and`, `or`, `,` or the end")),
    }
}

struct Parser<'t> {
    text: &'t str,
    tokens: Vec<Token<'t>>,
    next: usize,
    depth: usize,
    terms: usize,
}

impl<'t> Parser<'t> {
    /// `either { "," either }`
    fn list<L: Leaf>(&mut self) -> Parsed<Tree<L>> {
        let mut items = vec![self.either()?];
        while self.eat(&What::Comma) {
            items.push(self.either()?);
        }
        Ok(Tree::and(items))
    }

    /// `both { "or" both }`
    fn either<L: Leaf>(&mut self) -> Parsed<Tree<L>> {
        let mut items = vec![self.both()?];
        while self.eat_word("or") {
            items.push(self.both()?);
        }
        Ok(Tree::or(items))
    }

    /// `term { "and" term }`
    fn both<L: Leaf>(&mut self) -> Parsed<Tree<L>> {
        let mut items = vec![self.term()?];
        while self.eat_word("and") {
            items.push(self.term()?);
        }
        Ok(Tree::and(items))
    }

    fn term<L: Leaf>(&mut self) -> Parsed<Tree<L>> {
        if self.eat_word("not") {
            return Ok(Tree::Not(Box::new(self.nested(Self::term)?)));
        }
        if self.eat(&What::Open) {
            let tree = self.nested(Self::list)?;
            self.expect(&What::Close)?;
            return Ok(tree);
        }
        if let Some(make) = L::OF_NODE {
            if self.is_word("gpu") && self.after() == Some(&What::OpenGpu) {
                return Ok(Tree::Leaf(make(NodeLeaf::Gpu(self.gpu()?))));
            }
            if self.is_word("count") && self.after() == Some(&What::Open) {
                return Ok(Tree::Leaf(make(self.count()?)));
            }
        }
        self.comparison().map(Tree::Leaf)
    }

    /// `"gpu" "[" list "]"`
    fn gpu(&mut self) -> Parsed<Tree<Test<GpuField>>> {
        self.next += 2;
        let tree = self.nested(Self::list)?;
        self.expect(&What::CloseGpu)?;
        Ok(tree)
    }

    /// `"count" "(" "gpu" [ "[" list "]" ] ")" compare number`
    fn count(&mut self) -> Parsed<NodeLeaf> {
        self.next += 2;
        if !self.is_word("gpu") {
            return Err(self.expected("`gpu`"));
        }
        let filtered = self.after() == Some(&What::OpenGpu);
        let filter = if filtered { Some(self.gpu()?) } else { None };
        self.next += usize::from(!filtered);
        self.expect(&What::Close)?;
        let (op, op_at) = self.operator()?;
        let (value, value_at) = self.value()?;
        let number = count(op, &[value]).map_err(|(part, message)| {
            let at = if part == Part::Op { op_at } else { value_at };
            self.error(at, message)
        })?;
        Ok(NodeLeaf::Count(filter, op, number))
    }

    /// `field op value`
    fn comparison<L: Leaf>(&mut self) -> Parsed<L> {
        let field_at = self.here();
        let field = match *self.peek() {
            What::Word(word) if !is_keyword(word) => word,
            _ => return Err(self.expected("a field, `not`, `(` or `gpu[`")),
        };
        self.next += 1;
        let (op, op_at) = self.operator()?;
        let (values, places) = match op {
            Op::In => self.values()?,
            _ => self.value().map(|(value, at)| (vec![value], vec![at]))?,
        };
        L::compare(&Written { field, op, values }).map_err(|(part, message)| {
            let at = match part {
                Part::Field => field_at,
                Part::Op => op_at,
                Part::Value(i) => places[i].clone(),
            };
            self.error(at, message)
        })
    }

    fn operator(&mut self) -> Parsed<(Op, Range<usize>)> {
        let op = match *self.peek() {
            What::Sign(text) | What::Word(text) => Op::from_name(text),
            _ => None,
        };
        let op = op.ok_or_else(|| {
            self.expected("an operator (`=`, `!=`, `<`, `<=`, `>`, `>=`, `~`, `has`, `in`)")
        })?;
        let at = self.here();
        self.next += 1;
        Ok((op, at))
    }

    /// `"(" value { "," value } ")"`
    fn values(&mut self) -> Parsed<(Vec<String>, Vec<Range<usize>>)> {
        self.expect(&What::Open)?;
        let (mut values, mut places) = (Vec::new(), Vec::new());
        loop {
            let (value, at) = self.value()?;
            values.push(value);
            places.push(at);
            if !self.eat(&What::Comma) {
                break;
            }
        }
        self.expect(&What::Close)?;
        Ok((values, places))
    }

    /// A word or a quoted text. A number and a unit may be two words: `40 GB`.
    fn value(&mut self) -> Parsed<(String, Range<usize>)> {
        let mut at = self.here();
        let mut value = match self.peek() {
            What::Word(word) => (*word).to_owned(),
            What::Quoted(text) => text.clone(),
            _ => return Err(self.expected("a value")),
        };
        self.terms += 1;
        if self.terms > MAX_TERMS {
            return Err(self.error(at, format!("at most {MAX_TERMS} values in a query")));
        }
        let is_number = matches!(self.peek(), What::Word(word)
            if word.bytes().all(|b| b.is_ascii_digit() || b == b'.'));
        self.next += 1;
        if let What::Word(unit) = *self.peek()
            && is_number
            && ByteSize::unit(unit).is_some()
        {
            value.push_str(unit);
            at.end = self.here().end;
            self.next += 1;
        }
        Ok((value, at))
    }

    fn nested<T>(&mut self, read: fn(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == MAX_DEPTH {
            let message = format!("a query nests at most {MAX_DEPTH} levels deep");
            return Err(self.error(self.here(), message));
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    fn peek(&self) -> &What<'t> {
        &self.tokens[self.next].what
    }

    /// The token after the next.
    fn after(&self) -> Option<&What<'t>> {
        self.tokens.get(self.next + 1).map(|token| &token.what)
    }

    fn here(&self) -> Range<usize> {
        self.tokens[self.next].at.clone()
    }

    fn eat(&mut self, what: &What<'_>) -> bool {
        let found = self.peek() == what;
        self.next += usize::from(found);
        found
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), What::Word(text) if text.eq_ignore_ascii_case(word))
    }

    fn eat_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        self.next += usize::from(found);
        found
    }

    fn expect(&mut self, what: &What<'_>) -> Parsed<()> {
        if self.eat(what) {
            Ok(())
        } else {
            Err(self.expected(&what.describe()))
        }
    }

    fn expected(&self, what: &str) -> QueryError {
        let found = self.peek().describe();
        self.error(self.here(), format!("expected {what}, found {found}"))
    }

    fn error(&self, at: Range<usize>, message: impl Into<String>) -> QueryError {
        QueryError::in_text(self.text, at, message)
    }
}

fn is_keyword(word: &str) -> bool {
    ["and", "or", "not", "in", "has"]
        .iter()
        .any(|key| word.eq_ignore_ascii_case(key))
}
