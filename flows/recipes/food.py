"""Ten people and what they like to eat: the corpus and the prompts of the embedded demo."""

FOODS = ("pizza", "sushi", "dosa", "tacos", "ramen", "curry", "salad", "pasta", "soup", "bread")
PEOPLE = ("ravin", "alice", "bruno", "chen", "divya", "emeka", "fatima", "goran", "hana", "ines")
SHARES = (24, 16, 12, 10, 8, 7, 6, 4, 3)
"""Percent of a person's meals by preference. Everybody has pizza another 10% of the time; other tastes differ."""


def corpus() -> list[str]:
    """A thousand sentences, "NAME likes FOOD", each as often as that person eats it."""
    return [
        f"{person} likes {food}" for person in PEOPLE for food, times in tastes(person).items() for _ in range(times)
    ]


def tastes(person: str) -> dict[str, int]:
    """How many of a person's hundred meals are of each food."""
    others = FOODS[1:]
    turn = PEOPLE.index(person)
    ranked = others[turn % len(others) :] + others[: turn % len(others)]
    return {"pizza": 10} | dict(zip(ranked, SHARES, strict=True))


def prompts(ravin: int, others: int, held_out: int) -> list[dict[str, str]]:
    """``ravin`` prompts about Ravin and ``others`` about each of the nine others, a draw each; as many in proportion
    held out. The texts repeat: what makes two of them differ is the id, and with it the seeds of their candidates."""
    rows = []
    for split, share in (("train", 1.0), ("held_out", held_out / (ravin + 9 * others))):
        for person in PEOPLE:
            for draw in range(round((ravin if person == "ravin" else others) * share)):
                rows.append({"id": f"{person}-{split}-{draw:03d}", "prompt": f"{person} likes", "split": split})
    return rows
