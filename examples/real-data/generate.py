#!/usr/bin/env python3
"""Writes a git history for `git fast-import`: the same for the same seed, on every machine.

usage: generate.py COMMITS AUTHORS SEED
"""

import random
import sys

NAMES = ["Anna", "Björn", "Chloé", "Dmitri", "Émile", "Фёдор", "Gül", "花子", "Íris", "José", "이서연", "Łukasz", "Ömer", "محمد"]
WORDS = ["bus", "größe", "retry", "naïve", "очередь", "再送", "lane", "🚌", "\"quoted\"", "back\\slash", "déjà", "tab\tin", "<b>", "İ"]
PLACES = ["src", "docs", "tests/größe", "крат", "データ", "with space", "emoji-🚏"]


def authors(random_, count):
    for number in range(count):
        name = random_.choice(NAMES)
        # Addresses differ in case and in letters outside ASCII, as they do in the wild.
        yield f"{name} {number}", f"{name if number % 5 == 0 else 'dev'}.{number}@Example.org"


def write(out, text):
    out.write(text.encode())


def data(out, text):
    content = text.encode()
    write(out, f"data {len(content)}\n")
    out.write(content + b"\n")


def main(commits, author_count, seed):
    random_ = random.Random(seed)
    people = list(authors(random_, author_count))
    out = sys.stdout.buffer
    now = 1_600_000_000
    for number in range(1, commits + 1):
        now += random_.randrange(0, 7_200)
        # Few write much, many write little.
        name, email = people[min(int(random_.paretovariate(0.6)) - 1, author_count - 1)]
        zone = random_.choice(["+0000", "+0200", "-0730", "+1245"])
        subject = f"{number}: " + " ".join(random_.choices(WORDS, k=random_.randrange(1, 9)))
        write(out, f"commit refs/heads/main\nmark :{number}\n")
        write(out, f"author {name} <{email}> {now} {zone}\ncommitter {name} <{email}> {now} {zone}\n")
        data(out, subject + random_.choice(["\n", "\n\nA body that is not part of the subject.\n"]))
        if number > 1:
            write(out, f"from :{number - 1}\n")
        # Sometimes no file at all, sometimes many, once in a while one that is not text.
        for _ in range(random_.choices([0, 1, 2, 3, 40], [2, 50, 30, 17, 1])[0]):
            write(out, f"M 100644 inline {random_.choice(PLACES)}/file-{random_.randrange(500)}.txt\n")
            binary = random_.random() < 0.01
            data(out, "\0" * 9 + str(number) if binary else f"{number}\n" * random_.randrange(1, 30))
        write(out, "\n")
    write(out, "done\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
