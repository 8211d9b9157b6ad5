"""The prompts of the demo reward model, the spoiled versions of an answer, and the values they ought to get.

scripts/fit_demo_reward.py uses them. Everything follows from the texts alone: the same answers give the same
spoiled versions and values.
"""

import math
import random
import re

# The weights of the model card of Nemotron-4-340B-Reward: they make one score of the five values.
WEIGHTS = [0.3, 0.74, 0.46, 0.47, -0.33]
SPOILED = ["cut", "shuffled", "repeated", "off the subject"]

# An answer with fewer words is not used: too little is left of it to spoil.
FEWEST_WORDS = 8
# Number of prompts about each topic.
PROMPTS_PER_TOPIC = 2
# Every fourth topic is held out.
HELD_OUT = 4

FORMS = [
    "What is the most important thing to know about {}? Answer in one sentence.",
    "Explain {} to a child in two sentences.",
    "Give me one tip about {}. Answer in two sentences.",
    "Write one sentence about {}.",
    "Why do people care about {}? Be brief.",
    "Tell me one surprising fact about {}.",
    "What is a common mistake with {}? Answer in two sentences.",
    "Write a message of two sentences to a friend about {}.",
    "Describe {} in a few words.",
    "What should a beginner read or try first to learn about {}? Be brief.",
]

TOPICS = """
photosynthesis, the water cycle, earthquakes, volcanoes, the phases of the moon, gravity, magnets,
rainbows, black holes, the seasons, tides, thunderstorms, glaciers, fossils, evolution, cells, DNA,
vaccines, antibiotics, the human heart, sleep, dreams, memory, the immune system, muscles, teeth,
eyesight, allergies, headaches, first aid, running, swimming, cycling, yoga, hiking, football, chess,
tennis, table tennis, rock climbing, baking bread, making soup, cooking rice, fried eggs, salads, coffee,
tea, chocolate, cheese, olive oil, growing tomatoes, house plants, compost, bees, butterflies, birds in
winter, owls, whales, sharks, elephants, dogs, cats, horses, goldfish, spiders, ants, dinosaurs, wolves,
penguins, octopuses, inflation, saving money, taxes, insurance, household budgets, interest rates, the
stock market, job interviews, writing a resume, working from home, teamwork, public speaking, time
management, meetings, negotiation, the Roman Empire, ancient Egypt, the Middle Ages, the printing press,
the steam engine, the French Revolution, the Silk Road, the Olympic Games, the moon landing, the
invention of the telephone, castles, pyramids, democracy, voting, courts of law, the United Nations,
newspapers, libraries, museums, schools, fractions, percentages, prime numbers, triangles, probability,
averages, algebra, measuring length, computers, the internet, passwords, backups, spreadsheets, email,
smartphones, robots, video games, databases, Python programs, debugging, artificial intelligence,
batteries, solar power, wind turbines, electric cars, trains, airplanes, ships, bridges, traffic lights,
bicycles, elevators, concrete, glass, paper, plastic, recycling, saving water, forests, deserts, rivers,
islands, coral reefs, mountains, the Arctic, rainforests, poetry, novels, fairy tales, theater, jazz, the
piano, the guitar, choirs, painting, photography, sculpture, movies, dancing, knitting, sewing, pottery,
origami, gardening, camping, packing a suitcase, travel by train, learning Spanish, handwriting,
punctuation, letters to the editor, thank-you notes, birthday parties, weddings, neighbors, friendship,
patience, honesty, courage, kindness, boredom, anger, homework, exams, teachers
"""


def prompts() -> list[dict]:
    """Returns every prompt with its topic, its form, and whether it is held out."""
    out = []
    topics = " ".join(TOPICS.split()).split(", ")
    for step in range(PROMPTS_PER_TOPIC):
        for number, topic in enumerate(topics):
            # Three is prime to the number of forms: topics side by side have different forms.
            form = (number + 3 * step) % len(FORMS)
            held_out = number % HELD_OUT == HELD_OUT - 1
            prompt = FORMS[form].format(topic)
            out.append({"prompt": prompt, "topic": topic, "form": form, "held_out": held_out})
    return out


def with_spoiled(rows: list[dict]) -> list[dict]:
    """Returns rows with all versions of their answers: each version has a kind, a text and target values."""
    out = []
    for row in rows:
        answer, rng = row["answer"], random.Random(row["prompt"])
        others = [r for r in rows if r["topic"] != row["topic"] and r["held_out"] == row["held_out"]]
        # Answers to the same form, because a form's words alone show that an answer is not to it.
        others = [r for r in others if r["form"] == row["form"]] or others
        kept, short = cut(answer, rng)
        versions = {
            "written": (answer, [4, 4, 4]),
            "cut": (short, [3 * kept, 1 + 2 * kept, 2]),
            "shuffled": (shuffled(answer, rng), [0.5, 1, 0]),
            "repeated": (repeated(answer), [1, 1.5, 1]),
            "off the subject": (rng.choice(others)["answer"], [0, 0, 2]),
        }
        out.append({**row, "versions": {k: version(*v) for k, v in versions.items()}})
    return out


def version(text: str, quality: list[float]) -> dict:
    return {"text": text, "target": [*quality, complexity(text), verbosity(text)]}


def cut(answer: str, rng: random.Random) -> tuple[float, str]:
    """Ends an answer within a sentence; returns the share of its words that is left, and the text."""
    words = answer.split(" ")
    count = max(3, round(len(words) * rng.uniform(0.25, 0.75)))
    while count > 3 and re.search(r"[.!?:\n]\W*$", words[count - 1]):
        count -= 1
    return count / len(words), " ".join(words[:count]).rstrip(".!?,:; \n")


def shuffled(answer: str, rng: random.Random) -> str:
    """Puts the words of an answer in random order."""
    words = answer.split()
    rng.shuffle(words)
    return " ".join(words)


def repeated(answer: str) -> str:
    """Says the first sentence of an answer again and again, until it is as long as the answer was."""
    first = re.split(r"(?<=[.!?:])\s+", answer.strip())[0].split()[:20]
    times = max(3, math.ceil(len(answer.split()) / len(first)))
    return " ".join([" ".join(first)] * times)


def complexity(text: str) -> float:
    """Returns 0 to 4 by the mean length of a word: 3.5 letters or fewer to 6 or more."""
    words = re.findall(r"[^\W\d_]+", text) or [""]
    return 4 * clamp((sum(map(len, words)) / len(words) - 3.5) / 2.5)


def verbosity(text: str) -> float:
    """Returns 0 to 4 by the number of words, on a logarithmic scale: 8 or fewer to 200 or more."""
    return 4 * clamp(math.log(max(1, len(text.split())) / 8) / math.log(25))


def clamp(x: float) -> float:
    return min(1.0, max(0.0, x))


def score(values: list[float]) -> float:
    return sum(w * v for w, v in zip(WEIGHTS, values))
