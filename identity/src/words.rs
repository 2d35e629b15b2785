//! The words of mesh fingerprints: 256 short nouns, one a byte. Their order is part of what people
//! compare, so it never changes.

/// One word for each byte.
pub(crate) const WORDS: [&str; 256] = [
    "acorn", "amber", "anchor", "apple", "apron", "arrow", "ash", "aspen", "atlas", "autumn",
    "badge", "bagel", "bamboo", "banjo", "barley", "basil", "basket", "beacon", "beaver", "beetle",
    "bell", "berry", "birch", "bison", "bottle", "bread", "brick", "bridge", "bronze", "brook",
    "bucket", "butter", "button", "cabin", "cactus", "camel", "candle", "canoe", "canyon",
    "carpet", "carrot", "castle", "cave", "cedar", "cello", "chalk", "cherry", "chess", "cider",
    "cinema", "citrus", "clay", "cliff", "cloud", "clover", "coast", "cobalt", "cocoa", "comet",
    "copper", "coral", "cotton", "crane", "crater", "cricket", "crown", "daisy", "dawn", "delta",
    "desert", "diamond", "dolphin", "donkey", "dragon", "drum", "dune", "eagle", "easel", "echo",
    "elbow", "elm", "ember", "engine", "falcon", "feather", "fern", "ferry", "fiddle", "field",
    "fig", "finch", "fjord", "flint", "flute", "forest", "fossil", "fox", "galaxy", "garden",
    "garlic", "gecko", "geyser", "ginger", "glacier", "globe", "goose", "grape", "gravel",
    "guitar", "hammer", "harbor", "harp", "hazel", "heron", "hill", "honey", "hornet", "iceberg",
    "igloo", "indigo", "iris", "island", "ivory", "ivy", "jacket", "jaguar", "jasmine", "jelly",
    "juniper", "kayak", "kettle", "kiwi", "koala", "ladder", "lagoon", "lake", "lantern", "laurel",
    "lava", "lemon", "lentil", "lilac", "lime", "linen", "lion", "lobster", "lotus", "lunar",
    "lynx", "magnet", "mango", "maple", "marble", "meadow", "melon", "meteor", "mint", "mirror",
    "monsoon", "moose", "mosaic", "moss", "moth", "mountain", "mustard", "needle", "nickel",
    "noodle", "nutmeg", "oak", "oasis", "oat", "ocean", "olive", "onion", "opal", "orange",
    "orbit", "orchid", "otter", "owl", "oyster", "paddle", "panda", "papaya", "paper", "parrot",
    "peach", "pearl", "pebble", "pelican", "pencil", "pepper", "petal", "piano", "pigeon", "pine",
    "planet", "plum", "pocket", "pond", "poppy", "potato", "prairie", "puffin", "pumpkin",
    "quartz", "quilt", "rabbit", "radish", "raven", "reef", "ribbon", "rice", "river", "robin",
    "rocket", "rose", "ruby", "saddle", "saffron", "salmon", "sand", "sapphire", "satin", "shell",
    "silver", "sparrow", "spruce", "squash", "stone", "storm", "sugar", "summit", "swan", "tango",
    "teapot", "temple", "thistle", "thunder", "tiger", "timber", "tomato", "tulip", "tundra",
    "turtle", "valley", "velvet", "violet", "walnut", "walrus", "willow", "window", "winter",
    "yarrow", "zebra",
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::WORDS;

    #[test]
    fn words_are_distinct_short_and_plain() {
        assert_eq!(WORDS.iter().collect::<BTreeSet<_>>().len(), WORDS.len());
        for word in WORDS {
            assert!((3..=8).contains(&word.len()), "{word}");
            assert!(word.bytes().all(|b| b.is_ascii_lowercase()), "{word}");
        }
    }
}
