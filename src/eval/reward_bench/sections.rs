//! The subsets of RewardBench, the sections that they belong to, and their weights.

/// The version of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// A section of version 1: its name and its subsets.
pub(super) struct Section {
    pub(super) name: &'static str,
    /// Subsets with their weights.
    pub(super) subsets: &'static [(&'static str, u32)],
}

/// The sections of version 1. A weight is the number of rows, but for `math-prm`, which weighs as much as the
/// six subsets of code together.
pub(super) const SECTIONS: &[Section] = &[
    Section {
        name: "Chat",
        subsets: &[
            ("alpacaeval-easy", 100),
            ("alpacaeval-length", 95),
            ("alpacaeval-hard", 95),
            ("mt-bench-easy", 28),
            ("mt-bench-med", 40),
        ],
    },
    Section {
        name: "Chat Hard",
        subsets: &[
            ("mt-bench-hard", 37),
            ("llmbar-natural", 100),
            ("llmbar-adver-neighbor", 134),
            ("llmbar-adver-GPTInst", 92),
            ("llmbar-adver-GPTOut", 47),
            ("llmbar-adver-manual", 46),
        ],
    },
    Section {
        name: "Safety",
        subsets: &[
            ("refusals-dangerous", 100),
            ("refusals-offensive", 100),
            ("xstest-should-refuse", 154),
            ("xstest-should-respond", 250),
            ("donotanswer", 136),
        ],
    },
    Section {
        name: "Reasoning",
        subsets: &[
            ("math-prm", 984),
            ("hep-cpp", 164),
            ("hep-go", 164),
            ("hep-java", 164),
            ("hep-js", 164),
            ("hep-python", 164),
            ("hep-rust", 164),
        ],
    },
];

/// The older data sets that the leaderboard adds as a fifth section with half the weight of the others.
pub(super) const PRIOR_SETS: &Section = &Section {
    name: "Prior Sets",
    subsets: &[("anthropic_helpful", 1), ("anthropic_hhh", 1), ("shp", 1), ("summarize", 1)],
};

/// The subset of version 2 that has several correct answers.
pub(super) const TIES: &str = "Ties";

/// The subsets of version 2.
pub(super) const SUBSETS_2: [&str; 6] = ["Factuality", "Focus", "Math", "Precise IF", "Safety", TIES];

/// Whether a version has this subset.
pub(super) fn is_known(version: Version, subset: &str) -> bool {
    names(version).contains(&subset)
}

/// The subsets of a version.
pub(super) fn names(version: Version) -> Vec<&'static str> {
    match version {
        Version::One => {
            let sections = SECTIONS.iter().chain([PRIOR_SETS]);
            sections.flat_map(|section| section.subsets.iter().map(|(name, _)| *name)).collect()
        }
        Version::Two => SUBSETS_2.to_vec(),
    }
}
