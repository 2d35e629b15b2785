//! The query language by property.

use meshwork_proto::query::Query;
use proptest::prelude::*;

use crate::arbitrary::{announcement, query};
use crate::fixture::identity;

fn holds(query: &str, node: &meshwork_proto::Announcement) -> bool {
    Query::parse(query)
        .unwrap_or_else(|e| panic!("{e}"))
        .matches(&identity(1).node_id(), node)
}

proptest! {
    /// Whatever the text: an answer or an error that prints, never a panic.
    #[test]
    fn any_text_is_answered(text in "\\PC{0,80}") {
        if let Err(error) = Query::parse(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    /// The same for text made of the language's own parts.
    #[test]
    fn any_mixture_of_parts_is_answered(parts in proptest::collection::vec(part(), 0..40)) {
        let text = parts.concat();
        match Query::parse(&text) {
            Ok(query) => prop_assert_eq!(Query::parse(&query.to_string()), Ok(query)),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn any_json_is_answered(text in "[\\[\\]{}\":,a-z0-9 ]{0,60}") {
        if let Err(error) = Query::from_json(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    /// Text → query → text → query, and over JSON, is the same query.
    #[test]
    fn printed_queries_read_back(text in query()) {
        let query = Query::parse(&text).unwrap_or_else(|e| panic!("{e}"));
        let printed = query.to_string();
        prop_assume!(printed.len() <= meshwork_proto::limits::MAX_QUERY);
        prop_assert_eq!(&Query::parse(&printed).unwrap(), &query);
        let json = serde_json::to_string(&query.to_json()).unwrap();
        prop_assert_eq!(&Query::from_json(&json).unwrap(), &query);
    }

    /// The words mean what logic says.
    #[test]
    fn and_or_not_are_logic(a in query(), b in query(), node in announcement()) {
        let (left, right) = (holds(&a, &node), holds(&b, &node));
        prop_assert_eq!(holds(&format!("not ({a})"), &node), !left);
        prop_assert_eq!(holds(&format!("({a}) or ({b})"), &node), left || right);
        // Double negation keeps GPU tests of the two sides apart.
        prop_assert_eq!(holds(&format!("not not ({a}) and not not ({b})"), &node), left && right);
        // Together they are stricter, never laxer.
        let both = holds(&format!("({a}) and ({b})"), &node);
        prop_assert!(!both || left && right);
    }
}

fn part() -> impl Strategy<Value = String> {
    const PARTS: [&str; 36] = [
        "and ",
        "or ",
        "not ",
        "in ",
        "has ",
        "(",
        ")",
        "[",
        "]",
        ",",
        "gpu",
        "gpu[",
        "count(",
        "=",
        "!=",
        "<",
        "<=",
        ">",
        ">=",
        "~",
        "!",
        "\"",
        "'",
        "\\",
        "vram",
        "gpu.vram",
        "tags",
        "region",
        "40GB",
        " ",
        "40",
        "é",
        "name = x",
        " and ",
        "gpu.mig = true",
        "\n",
    ];
    proptest::sample::select(&PARTS[..]).prop_map(String::from)
}
