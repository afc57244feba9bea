# SPDX-License-Identifier: BSD-3-Clause
"""The two cities of a real table that are farthest apart.

The function takes what it refers to along, here the table, and is sent once per pool.  tri.map uses
a pool of the whole process, opened at first use and closed at exit.
"""
import csv
import math
from pathlib import Path

import trireme as tri


def farthest(i):
    """The longest way from city *i* to one before it: (kilometres, name, name)."""
    name, lat, lon = cities[i]
    return max((distance(lat, lon, a, b), name, other) for other, a, b in cities[:i])


def distance(lat1, lon1, lat2, lon2):
    lat1, lon1, lat2, lon2 = map(math.radians, (lat1, lon1, lat2, lon2))
    h = (math.sin((lat2 - lat1) / 2) ** 2
         + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2)
    return 2 * 6371 * math.atan2(math.sqrt(h), math.sqrt(1 - h))


table = Path(__file__).resolve().parents[1] / "data" / "cities.csv"
with open(table, encoding="utf-8", newline="") as f:
    cities = [(c["name"], float(c["latitude"]), float(c["longitude"])) for c in csv.DictReader(f)]

km, a, b = max(tri.map(farthest, range(1, len(cities))))
print(f"{a} and {b}: {km:.0f} km")
