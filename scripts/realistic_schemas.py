#!/usr/bin/env python3
"""Samples answers to realistic schemas, and validates them, formats included.

    pip install "jsonschema[format]==4.26.0"
    python scripts/realistic_schemas.py [--count 250] [--seed 1]

Some schemas are written by hand; the rest are composed of fields as agents and applications use them:
arguments of functions, invoices, addresses, events, trees, unions. Needs the demo model's tokenizer
(`scripts/demo_model.py`). Exits with status 1 if an answer is invalid, a schema has no complete answer, or
a refusal does not name the keyword at fault.
"""

import argparse
import random
import sys

import jsonschema
from schema_samples import report


def obj(properties, required=None, **more):
    names = list(properties) if required is None else required
    return {
        "type": "object",
        "properties": properties,
        "required": names,
        "additionalProperties": False,
        **more,
    }


STRING, INTEGER, NUMBER, BOOLEAN = ({"type": name} for name in ("string", "integer", "number", "boolean"))
ADDRESS = obj(
    {
        "street": {"type": "string", "minLength": 1, "maxLength": 80},
        "city": {"type": "string", "minLength": 1},
        "postal_code": {"type": "string", "pattern": "^[0-9]{5}(-[0-9]{4})?$"},
        "country": {"type": "string", "enum": ["US", "DE", "FR", "JP", "BR"]},
    }
)
MONEY = obj(
    {
        "amount": {"type": "number", "minimum": 0, "multipleOf": 0.01},
        "currency": {"type": "string", "pattern": "^[A-Z]{3}$"},
    }
)
TREE = {
    "$defs": {
        "node": obj(
            {"name": STRING, "children": {"type": "array", "maxItems": 2, "items": {"$ref": "#/$defs/node"}}}
        )
    },
    "$ref": "#/$defs/node",
}

HAND_WRITTEN = {
    "get_weather": obj({"location": STRING, "unit": {"enum": ["celsius", "fahrenheit"]}}, ["location"]),
    "get_weather without additionalProperties": {
        "type": "object",
        "properties": {"location": STRING, "days": {"type": "integer", "minimum": 1, "maximum": 14}},
        "required": ["location"],
    },
    "search": obj(
        {
            "query": STRING,
            "limit": {"type": "integer", "minimum": 1, "maximum": 100},
            "filters": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
        },
        ["query"],
    ),
    "send_email": obj(
        {
            "to": {
                "type": "array",
                "items": {"type": "string", "format": "email"},
                "minItems": 1,
                "maxItems": 3,
            },
            "subject": STRING,
            "body": STRING,
        }
    ),
    "calendar event": obj(
        {
            "title": STRING,
            "start": {"type": "string", "format": "date-time"},
            "day": {"type": "string", "format": "date"},
            "at": {"type": "string", "format": "time"},
            "length": {"type": "string", "format": "duration"},
        }
    ),
    "identifiers": obj(
        {
            "id": {"type": "string", "format": "uuid"},
            "home": {"type": "string", "format": "uri"},
            "v4": {"type": "string", "format": "ipv4"},
            "v6": {"type": "string", "format": "ipv6"},
            "host": {"type": "string", "format": "hostname"},
        }
    ),
    "optional by null": obj(
        {"name": STRING, "age": {"anyOf": [INTEGER, {"type": "null"}]}, "email": {"type": ["string", "null"]}}
    ),
    "union by kind": {
        "anyOf": [
            obj({"kind": {"const": "circle"}, "radius": {"type": "number", "exclusiveMinimum": 0}}),
            obj(
                {
                    "kind": {"const": "square"},
                    "side": {"type": "number", "exclusiveMinimum": 0, "maximum": 1000},
                }
            ),
        ]
    },
    "oneOf by kind": {
        "oneOf": [
            obj({"kind": {"const": "text"}, "text": STRING}),
            obj({"kind": {"const": "image"}, "url": {"type": "string", "format": "uri"}}),
        ]
    },
    "pydantic model": {
        "$defs": {
            "Status": {"enum": ["open", "closed"], "title": "Status", "type": "string"},
            "Item": {
                "title": "Item",
                "type": "object",
                "required": ["sku", "count"],
                "properties": {
                    "sku": {"title": "Sku", "type": "string"},
                    "count": {"title": "Count", "type": "integer"},
                },
            },
        },
        "title": "Order",
        "type": "object",
        "required": ["status", "items"],
        "properties": {
            "status": {"$ref": "#/$defs/Status"},
            "note": {"default": None, "title": "Note", "anyOf": [STRING, {"type": "null"}]},
            "items": {"type": "array", "maxItems": 3, "items": {"$ref": "#/$defs/Item"}},
        },
    },
    "zod object": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **obj(
            {
                "recipe": obj(
                    {
                        "name": STRING,
                        "ingredients": {
                            "type": "array",
                            "maxItems": 4,
                            "items": obj({"name": STRING, "amount": STRING}),
                        },
                        "steps": {"type": "array", "maxItems": 3, "items": STRING},
                    }
                )
            }
        ),
    },
    "tree": TREE,
    "linked list": {
        "$defs": {
            "list": obj({"value": INTEGER, "next": {"anyOf": [{"$ref": "#/$defs/list"}, {"type": "null"}]}})
        },
        "$ref": "#/$defs/list",
    },
    "map of numbers": {"type": "object", "additionalProperties": NUMBER, "maxProperties": 3},
    "map by pattern": {
        "type": "object",
        "patternProperties": {"^x-[a-z]+$": STRING},
        "additionalProperties": False,
    },
    "tuple": {"type": "array", "prefixItems": [STRING, INTEGER], "items": False, "minItems": 2},
    "classification": {"enum": ["positive", "negative", "neutral"]},
    "mixed enum": {"enum": ["a", 1, None, True, [1, 2], {"a": "b"}]},
    "allOf": {
        "allOf": [
            {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
            {"type": "object", "properties": {"b": STRING}, "required": ["b"]},
        ]
    },
    "invoice": obj(
        {
            "number": {"type": "string", "pattern": "^INV-[0-9]{4,6}$"},
            "total": MONEY,
            "seller": ADDRESS,
            "lines": {
                "type": "array",
                "minItems": 1,
                "maxItems": 3,
                "items": obj({"text": STRING, "count": {"type": "integer", "minimum": 1}, "price": MONEY}),
            },
        }
    ),
    "unicode names": obj({"größe": INTEGER, "名前": STRING, 'a "b"': BOOLEAN, "tab\t": {"type": "null"}}),
    "any object": {"type": "object"},
    "anything": True,
    "a text": {"type": "string", "minLength": 3, "maxLength": 12},
    "steps": {"type": "integer", "multipleOf": 5, "minimum": -20, "maximum": 45},
    "percent": {"type": "number", "minimum": 0, "maximum": 100},
}


class Composer:
    """Composes schemas of fields, by a seed."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def text(self):
        r = self.random
        low = r.randrange(4)
        return r.choice(
            [
                {"type": "string"},
                {"type": "string", "minLength": low, "maxLength": low + r.randrange(1, 20)},
                {
                    "type": "string",
                    "pattern": r.choice(
                        [
                            "^[a-z]{2,8}$",
                            "^\\+?[0-9]{7,12}$",
                            "^#[0-9a-fA-F]{6}$",
                            "^[A-Z][a-z]+( [A-Z][a-z]+)?$",
                            "^(v)?[0-9]+\\.[0-9]+\\.[0-9]+$",
                            "[0-9]",
                            "^https?://",
                        ]
                    ),
                },
                {
                    "type": "string",
                    "format": r.choice(
                        [
                            "date",
                            "time",
                            "date-time",
                            "uuid",
                            "email",
                            "ipv4",
                            "ipv6",
                            "uri",
                            "hostname",
                            "duration",
                        ]
                    ),
                },
                {
                    "type": "string",
                    "enum": r.sample(["red", "green", "blue", "a b", "ü", '"', ""], r.randrange(1, 5)),
                },
                {"type": "string", "description": "free text", "examples": ["one"]},
            ]
        )

    def number(self):
        r = self.random
        low = r.randrange(-100, 100)
        return r.choice(
            [
                {"type": "integer"},
                {"type": "number"},
                {"type": "integer", "minimum": low, "maximum": low + r.randrange(1, 1000)},
                {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + r.randrange(2, 50)},
                {"type": "number", "minimum": low / 8, "maximum": low / 8 + r.randrange(1, 9)},
                {"type": "number", "exclusiveMinimum": low},
                {"type": "integer", "maximum": low},
                {"type": "integer", "multipleOf": r.choice([2, 3, 7, 10])},
            ]
        )

    def value(self, depth):
        r = self.random
        simple = [
            self.text,
            self.text,
            self.number,
            self.number,
            lambda: {"type": "boolean"},
            lambda: {"const": r.choice(["fixed", 7, True, None])},
            lambda: dict(ADDRESS),
            lambda: dict(MONEY),
            lambda: {"type": ["string", "null"]},
            lambda: {"type": ["integer", "boolean"]},
            lambda: {"$ref": "#/$defs/shared"},
        ]
        nested = [
            lambda: self.object(depth - 1),
            lambda: self.array(depth - 1),
            lambda: self.union(depth - 1),
        ]
        return r.choice(simple + nested * 2 if depth > 0 else simple)()

    def array(self, depth):
        low = self.random.randrange(3)
        return {
            "type": "array",
            "items": self.value(depth),
            "minItems": low,
            "maxItems": low + self.random.randrange(3),
        }

    def union(self, depth):
        return {"anyOf": [self.value(depth) for _ in range(self.random.randrange(2, 4))]}

    def object(self, depth):
        r = self.random
        names = r.sample(
            [
                "id",
                "name",
                "kind",
                "user_id",
                "createdAt",
                "tags",
                "price",
                "notes",
                "parent",
                "x-y",
                "Größe",
                "is_active",
                "options",
                "0",
                "first name",
            ],
            r.randrange(1, 6),
        )
        schema = {
            "type": "object",
            "properties": {name: self.value(depth) for name in names},
            "required": [name for name in names if r.random() < 0.7],
        }
        closed = r.random()
        if closed < 0.7:
            schema["additionalProperties"] = False
        elif closed < 0.85:
            schema["additionalProperties"] = self.value(0)
        return schema

    def schema(self):
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$defs": {"shared": self.object(0)},
            **self.random.choice([self.object, self.object, self.object, self.array, self.union])(2),
        }


def without_self_reference(schema):
    """The definition of `shared` must not refer to itself without an end."""

    def simple(value):
        if isinstance(value, dict):
            return STRING if "$ref" in value else {key: simple(item) for key, item in value.items()}
        return [simple(item) for item in value] if isinstance(value, list) else value

    return {**schema, "$defs": simple(schema["$defs"])}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=250, help="composed schemas")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shown", type=int, default=1, help="invalid answers to print for each schema")
    args = parser.parse_args()
    composer = Composer(args.seed)
    composed = [(f"composed {i}", without_self_reference(composer.schema())) for i in range(args.count)]
    schemas = [*HAND_WRITTEN.items(), *composed]
    sys.exit(not report(schemas, jsonschema.Draft202012Validator, formats=True, shown=args.shown))


if __name__ == "__main__":
    main()
