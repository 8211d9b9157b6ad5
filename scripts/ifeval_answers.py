"""Made prompts and answers for `scripts/compare_ifeval.py`: sentences in several languages, and the marks,
abbreviations, cases and odd characters on which checkers of rules differ."""

import random

SENTENCES = [
    "The ferry leaves the harbour at half past six and reaches the island before noon.",
    "Dr. Okafor moved to Lagos in 1998. She still teaches there.",
    "We met Mr. and Mrs. Lind at 5 p.m. on Jan. 3rd, and they were late.",
    "Bring bread, cheese, olives, etc. The shop closes early.",
    "Is it raining? I think so! Take the umbrella...",
    "He paid $3.50 for it (a bargain), e.g. at the market in St. Ives.",
    "The U.S. team won 3-1. The U.K. team lost.",
    "Wait... What did you say?",
    '"Come in," she said. "It is cold outside."',
    "J. R. Hartley wrote about fly fishing.",
    "Item no. 7 costs 12.5 euros. Item 8 is free.",
    "NASA and ESA launched it; the BBC showed it live.",
    "I CAN'T BELIEVE IT'S NOT BUTTER!",
    "A well-known, state-of-the-art method; see www.example.org for more.",
    "My answer is yes. My reasons are simple.",
    "Rain falls on the plain while the children play in the old barn near the river.",
    "This recipe needs flour and water and a little patience from the cook.",
    "No. I will not go there again.",
    "It ends here.Then it goes on without a space.",
    "Prof. Ada Stern vs. Acme Corp. was decided in Sept. 2020.",
    "You cannot stop now because we are gonna win this game today.",
    "Don't forget: the rock 'n' roll concert begins at 8:30 sharp.",
]
OTHERS = {
    "de": "Der Zug fährt um acht Uhr ab und kommt am Abend in der Stadt an. Wir warten auf dem Bahnsteig.",
    "fr": "Le petit marché ouvre très tôt le matin et les habitants du village y achètent leur pain.",
    "es": "La biblioteca abre a las nueve y los niños leen cuentos en el patio con sus abuelos.",
    "it": "Il treno parte alle otto e arriva in città prima di sera, dopo molte fermate.",
    "pt": "A chuva caiu durante toda a noite e os rios subiram muito, mas ninguém ficou ferido.",
    "sw": "Watu wengi wa kijiji hiki wanafanya kazi katika shamba na watoto wao wanakwenda shule kila siku.",
    "fi": "Aurinko laskee järven taakse ja lapset juoksevat kotiin ennen pimeää.",
    "pl": "Pociąg odjeżdża o ósmej rano, a my czekamy na peronie z ciężkimi walizkami.",
    "vi": "Buổi sáng hôm nay trời mưa to và mọi người trong làng đều ở nhà.",
    "ru": "Поезд отходит в восемь часов утра, и мы ждём его на перроне с чемоданами.",
    "uk": "Потяг вирушає о восьмій ранку, і ми чекаємо на нього на пероні з валізами.",
    "bg": "Влакът тръгва в осем часа сутринта и ние чакаме на перона с куфарите.",
    "ar": "يغادر القطار في الساعة الثامنة صباحا ونحن ننتظر على الرصيف مع حقائبنا.",
    "fa": "قطار ساعت هشت صبح حرکت می‌کند و ما با چمدان‌هایمان در ایستگاه منتظریم.",
    "ur": "ریل گاڑی صبح آٹھ بجے روانہ ہوتی ہے اور ہم پلیٹ فارم پر انتظار کر رہے ہیں۔",
    "he": "הרכבת יוצאת בשמונה בבוקר ואנחנו מחכים ברציף עם המזוודות שלנו.",
    "hi": "रेलगाड़ी सुबह आठ बजे चलती है और हम अपने सामान के साथ प्लेटफ़ॉर्म पर इंतज़ार करते हैं।",
    "mr": "रेल्वे सकाळी आठ वाजता सुटते आणि आम्ही आमच्या सामानासह फलाटावर वाट पाहतो आहोत.",
    "ne": "रेल बिहान आठ बजे छुट्छ र हामी आफ्नो सामान लिएर प्लेटफर्ममा पर्खिरहेका छौं।",
    "bn": "ট্রেন সকাল আটটায় ছাড়ে এবং আমরা আমাদের ব্যাগ নিয়ে অপেক্ষা করছি।",
    "ta": "ரயில் காலை எட்டு மணிக்கு புறப்படுகிறது, நாங்கள் எங்கள் பைகளுடன் காத்திருக்கிறோம்.",
    "te": "రైలు ఉదయం ఎనిమిది గంటలకు బయలుదేరుతుంది, మేము మా సంచులతో వేచి ఉన్నాము.",
    "kn": "ರೈಲು ಬೆಳಿಗ್ಗೆ ಎಂಟು ಗಂಟೆಗೆ ಹೊರಡುತ್ತದೆ ಮತ್ತು ನಾವು ಕಾಯುತ್ತಿದ್ದೇವೆ.",
    "ml": "തീവണ്ടി രാവിലെ എട്ടുമണിക്ക് പുറപ്പെടുന്നു, ഞങ്ങൾ കാത്തിരിക്കുന്നു.",
    "gu": "ટ્રેન સવારે આઠ વાગ્યે ઉપડે છે અને અમે અમારા સામાન સાથે રાહ જોઈએ છીએ.",
    "pa": "ਰੇਲਗੱਡੀ ਸਵੇਰੇ ਅੱਠ ਵਜੇ ਚੱਲਦੀ ਹੈ ਅਤੇ ਅਸੀਂ ਆਪਣੇ ਸਮਾਨ ਨਾਲ ਉਡੀਕ ਕਰਦੇ ਹਾਂ।",
    "th": "รถไฟออกเวลาแปดโมงเช้าและเรารออยู่ที่ชานชาลาพร้อมกระเป๋าของเรา",
    "ja": "電車は朝八時に出発します。私たちは荷物を持ってホームで待っています。",
    "ko": "기차는 아침 여덟 시에 출발하고 우리는 가방을 들고 기다리고 있습니다.",
}
ODD = [
    "e\u0301te\u0301 naïve Straße \u01c5ep İstanbul ΟΔΟΣ",
    "one\u1680two\u2003three\x1cfour\x85five\u2028six",
    "١٢٣ ²³ ½ Ⅻ n\u0303o",
    "https://example.org/a?b=c mail@example.org",
    "12 + 30 = 42 !!",
    "🙂🙂 * **",
    "",
    " ",
]
LISTS = [
    "* one\n* two\n* three", "- one\n- two", "**bold** start\n* x", "---\n", "*\n\n* y",
    "  * in\n\n\n - out", "***", "\n***\n",
]
MARKS = ["*short*", "**very bold**", "* *", "****", "** **", "*a\nb*", "[name]", "[a [b] c]", "[]", "[x\ny]"]
PARTS = [
    "Section 1 first Section 2 second", "SECTION 1\nSECTION 2\nSECTION 3",
    "Section one", "section 4 Section5 x",
]
TITLES = ["<<A title>>", "<< >>", "<<<deep>>>", "<<a\nb>>", "<<x>> <<>>"]
POSTSCRIPTS = ["P.S. more", "p. s. more", "P.P.S more", "P. P. S. x", "PS: no", "P.P.S. yes"]
JSONS = [
    '{"a": [1, 2.5e3, NaN]}', "```json\n{\"a\": null}\n```", "```JSON\n[]\n```",
    "{'a': 1}", "[1, 2,]", '"text"',
    "-Infinity", "01", '{"a": "\\ud800"}', '{"a": "tab\there"}', "```\n{}\n```",
    '{"a":1}{"b":2}', "1e999", "-",
    "[" * 40 + "]" * 40, '{"k" : "v" , "l":[ ] }', "```json```json {}", "1.", '{"a" 1}',
]
TWO = [
    "first ****** second", "same ****** same", "****** a ****** b ******", "a ****** ****** b",
    "a ******* b",
]
CONSTRAINED = ["My answer is no.", "My answer is maybe.", "my answer is no.", "My answer is yes"]
ENDS = ["Any questions?", '"Any questions?"', "any questions?  ", "Any questions? No.", "Is that all?"]
CAPITALS = [
    "THE WHOLE ANSWER IS WRITTEN IN CAPITAL LETTERS SO THAT EVERYONE CAN READ IT FROM FAR AWAY.",
    "the whole answer is written in small letters so that nothing stands out from the rest of it.",
    "U.S.A. AND D.C. ARE A-B/C, X:Y \u201cZ\u201d DON'T WE'LL I'M O'CLOCK CANNOT 'TIS GIMME WANNA",
    "ABC,DEF;GHI 3PM R&D AT&T C++ #TAG 5'S THEY'VE MORE'N 'ABC X--Y F..G A'S' LEMME",
    "12345 !!", "ВСЁ ЗАГЛАВНЫМИ БУКВАМИ НАПИСАНО ДЛЯ ВСЕХ",
]
GROUPS = [LISTS, MARKS, PARTS, TITLES, POSTSCRIPTS, TWO, CONSTRAINED, ENDS, ODD, CAPITALS, JSONS]
KEYWORDS = [
    "ferry", "Rain", "the", "C\\+\\+", "rock 'n' roll", "i", "straße", "n\\w+", "e.g.", "water|flour", "it's",
    "colou?r", "[0-9]{2}", "bread\\b", "^The", "here\\.$", "été", "(?:a|b)+", "umbrella\\.*",
]
RELATIONS = ["less than", "at least"]


def answer(rng):
    """An answer of several parts."""
    kind = rng.random()
    if kind < 0.12:
        return rng.choice(rng.choice(GROUPS))
    if kind < 0.2:
        return rng.choice(list(OTHERS.values()))
    parts = []
    for _ in range(rng.randint(1, 7)):
        group = SENTENCES if rng.random() < 0.65 else rng.choice(GROUPS)
        parts.append(rng.choice(group))
    text = parts[0]
    for part in parts[1:]:
        text += rng.choice([" ", " ", "\n", "\n\n", "\n\n", "\n***\n", " *** ", "\n\n\n"]) + part
    if rng.random() < 0.1:
        text = '"' + text + '"'
    if rng.random() < 0.1:
        text = text.upper() if rng.random() < 0.5 else text.lower()
    if rng.random() < 0.1:
        text = "Sure, here it is:\n" + text + "\nLet me know."
    return text


def near(rng, count, least=0):
    """A number about as large as a count, so that verdicts differ."""
    return max(least, count + rng.randint(-2, 2))


def arguments(rng, rule, text):
    """Arguments of a rule for a text."""
    relation = rng.choice(RELATIONS)
    words = text.split()
    first = [part.split() for part in text.split("\n\n") if part.strip()]
    paragraphs = rng.randint(1, 4)
    return {
        "keywords:existence": lambda: {"keywords": rng.sample(KEYWORDS, rng.randint(1, 2))},
        "keywords:frequency": lambda: {
            "keyword": rng.choice(KEYWORDS), "frequency": rng.randint(1, 4), "relation": relation},
        "keywords:forbidden_words": lambda: {"forbidden_words": rng.sample(KEYWORDS, rng.randint(1, 3))},
        "keywords:letter_frequency": lambda: {
            "letter": rng.choice("aeinQz"), "let_frequency": rng.randint(1, 12), "let_relation": relation},
        "language:response_language": lambda: {"language": rng.choice(["en", "en", *OTHERS])},
        "length_constraints:number_sentences": lambda: {
            "num_sentences": near(rng, sum(text.count(c) for c in ".?!"), 1), "relation": relation},
        "length_constraints:number_paragraphs": lambda: {
            "num_paragraphs": near(rng, text.count("***") + 1, 1)},
        "length_constraints:number_words": lambda: {
            "num_words": near(rng, len(words), 1), "relation": relation},
        "length_constraints:nth_paragraph_first_word": lambda: {
            "num_paragraphs": max(len(first), 1) if rng.random() < 0.7 else paragraphs,
            "nth_paragraph": 1, "first_word": rng.choice(first)[0] if first else "none"},
        "detectable_content:number_placeholders": lambda: {"num_placeholders": rng.randint(1, 2)},
        "detectable_content:postscript": lambda: {"postscript_marker": rng.choice(["P.S.", "P.P.S", "PS:"])},
        "detectable_format:number_bullet_lists": lambda: {"num_bullets": rng.randint(1, 4)},
        "detectable_format:number_highlighted_sections": lambda: {"num_highlights": rng.randint(1, 3)},
        "detectable_format:multiple_sections": lambda: {
            "section_spliter": rng.choice(["Section", "SECTION", "(Sec)tion"]),
            "num_sections": rng.randint(1, 3)},
        "combination:repeat_prompt": lambda: {"prompt_to_repeat": text[: rng.randint(1, 30)].strip() or "x"},
        "startend:end_checker": lambda: {
            "end_phrase": rng.choice(["Any questions?", "Let me know.", "here."])},
        "change_case:capital_word_frequency": lambda: {
            "capital_frequency": near(rng, sum(word.isupper() for word in words), 1),
            "capital_relation": relation},
    }.get(rule, dict)()


RULES = [
    "keywords:existence", "keywords:frequency", "keywords:forbidden_words", "keywords:letter_frequency",
    "language:response_language", "length_constraints:number_sentences",
    "length_constraints:number_paragraphs",
    "length_constraints:number_words", "length_constraints:nth_paragraph_first_word",
    "detectable_content:number_placeholders", "detectable_content:postscript",
    "detectable_format:number_bullet_lists", "detectable_format:constrained_response",
    "detectable_format:number_highlighted_sections", "detectable_format:multiple_sections",
    "detectable_format:json_format", "detectable_format:title", "combination:two_responses",
    "combination:repeat_prompt", "startend:end_checker", "change_case:capital_word_frequency",
    "change_case:english_capital", "change_case:english_lowercase", "punctuation:no_comma",
    "startend:quotation",
]
# Rules that few answers follow by chance, and answers that are made for them.
MADE_FOR = {
    "detectable_format:json_format": JSONS,
    "combination:two_responses": TWO,
    "change_case:english_capital": CAPITALS,
    "change_case:english_lowercase": CAPITALS,
    "change_case:capital_word_frequency": CAPITALS,
    "language:response_language": list(OTHERS.values()),
    "detectable_format:number_bullet_lists": LISTS,
    "detectable_content:postscript": POSTSCRIPTS,
}


def rows(count, seed):
    """Prompts with rules and answers."""
    rng = random.Random(seed)
    made = []
    for index in range(count):
        first = RULES[index % len(RULES)]
        text = answer(rng)
        if first in MADE_FOR and rng.random() < 0.5:
            text = rng.choice(MADE_FOR[first])
        rules = [first, *rng.sample([rule for rule in RULES if rule != first], rng.choice([0, 0, 1, 2]))]
        made.append({
            "key": index + 1,
            "prompt": f"Task {index + 1}: write about the harbour.",
            "instruction_id_list": rules,
            "kwargs": [arguments(rng, rule, text) for rule in rules],
            "response": text,
        })
    return made
