//! Words of English that decide whether a full stop ends a sentence. All are in small letters.

/// Abbreviations that mostly stand within a sentence.
pub(super) const ABBREVIATIONS: [&str; 62] = [
    "a.d", "a.g", "a.m", "adm", "ariz", "aug", "ave", "b.c", "bros", "c", "calif", "co", "col", "conn", "corp",
    "cos", "d", "d.c", "dec", "dr", "e", "feb", "fla", "ft", "g", "ga", "gen", "inc", "jan", "jr", "l.a", "lt",
    "ltd", "maj", "messrs", "minn", "mr", "mrs", "ms", "n", "n.c", "n.j", "n.v", "n.y", "nev", "nov", "oct",
    "okla", "p.m", "ph.d", "prof", "rep", "s.p.a", "sen", "sept", "st", "u.k", "u.n", "u.s", "va", "vs", "w",
];

/// Words that often begin a sentence, also after an abbreviation.
pub(super) const STARTERS: [&str; 20] = [
    "but", "he", "however", "i", "if", "in", "it", "many", "she", "so", "some", "that", "the", "there", "these",
    "they", "this", "when", "while", "yet",
];

/// Words that are written in small letters unless they begin a sentence: they are not part of names.
pub(super) const NEVER_NAMES: [&str; 96] = [
    "about", "above", "across", "add", "after", "again", "almost", "already", "also", "although", "always",
    "another", "anyone", "are", "because", "before", "below", "besides", "between", "both", "can", "choose",
    "come", "consider", "could", "did", "do", "does", "during", "each", "either", "enough", "even", "every",
    "everyone", "finally", "get", "give", "go", "had", "has", "have", "here", "how", "instead", "is", "just",
    "keep", "later", "look", "may", "maybe", "meanwhile", "might", "more", "most", "much", "must", "neither",
    "nothing", "often", "once", "only", "other", "our", "perhaps", "please", "put", "rather", "remember",
    "several", "should", "since", "sometimes", "soon", "still", "such", "take", "their", "then", "therefore",
    "those", "though", "through", "thus", "try", "under", "unless", "until", "was", "were", "what", "whether",
    "which", "why", "would",
];
