//! Formats of tool calls in the text of an answer.

/// A format of tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<toolcall> {"name": …, "arguments": …} </toolcall>`, as Nemotron-Mini writes it.
    Nemotron,
    /// `<TOOLCALL>[{"name": …, "arguments": …}, …]</TOOLCALL>`, as Nemotron Nano writes it.
    NemotronNano,
    /// `<tool_call>\n{"name": …, "arguments": …}\n</tool_call>`, as Hermes and Qwen write it.
    Hermes,
    /// An answer that is `{"name": …, "parameters": …}`, or several separated by `;`, as Llama 3 writes it.
    Llama3,
}

/// The texts of a format.
pub(super) struct Markers {
    /// Text before a call; empty if a call begins with its object.
    pub(super) begin: &'static str,
    /// Text after a call.
    pub(super) end: &'static str,
    /// Text between [`Self::begin`] and the object, and between the object and [`Self::end`], as the model
    /// writes it. The parser accepts any whitespace.
    pub(super) space: &'static str,
    /// Text between two calls, as the model writes it.
    pub(super) separator: &'static str,
    /// Name of the member with the arguments.
    pub(super) arguments: &'static str,
    /// Whether calls are the elements of one array between the markers.
    pub(super) in_array: bool,
}

impl ToolFormat {
    /// The formats, by the names of `--tool-call-parser`.
    pub const NAMES: [(&'static str, Self); 8] = [
        ("nemotron", Self::Nemotron),
        ("nemotron_nano", Self::NemotronNano),
        ("hermes", Self::Hermes),
        ("qwen", Self::Hermes),
        ("qwen25", Self::Hermes),
        ("llama3", Self::Llama3),
        ("llama3_json", Self::Llama3),
        ("llama4_json", Self::Llama3),
    ];

    /// The format with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, format)| *format)
    }

    /// The format that a chat template shows to the model; `None` if it shows none that is known.
    pub fn of_template(source: &str) -> Option<Self> {
        let has = |text: &str| source.contains(text);
        if has("<toolcall>") {
            Some(Self::Nemotron)
        } else if has("<TOOLCALL>") {
            Some(Self::NemotronNano)
        } else if has("<tool_call>") && !has("<function=") && !has("<arg_key>") {
            Some(Self::Hermes)
        } else if has("<|start_header_id|>") && has("\"parameters\": ") {
            Some(Self::Llama3)
        } else if has("<tool>") && has("<extra_id_1>") {
            // The template of Nemotron-Mini shows tools and leaves the format of calls to the training.
            Some(Self::Nemotron)
        } else {
            None
        }
    }

    /// The format for a template that shows no tools.
    pub fn for_plain_template(source: &str) -> Self {
        if source.contains("<extra_id_1>") { Self::Nemotron } else { Self::Hermes }
    }

    /// Whether calls have no markers: the answer begins with the call's object.
    pub(super) fn is_bare(self) -> bool {
        self.markers().begin.is_empty()
    }

    pub(super) fn markers(self) -> Markers {
        let markers = |begin, end, space, separator| {
            let (arguments, in_array) = ("arguments", false);
            Markers { begin, end, space, separator, arguments, in_array }
        };
        match self {
            Self::Nemotron => markers("<toolcall>", "</toolcall>", " ", "\n"),
            Self::NemotronNano => {
                Markers { in_array: true, ..markers("<TOOLCALL>", "</TOOLCALL>", "", "\n") }
            }
            Self::Hermes => markers("<tool_call>", "</tool_call>", "\n", "\n"),
            Self::Llama3 => Markers { arguments: "parameters", ..markers("", "", "", "; ") },
        }
    }
}
