"""English words for tasks on words: by kind, and with their opposites.

No word is of two kinds (so "orange" and "silver" are missing), and no word is close to the opposite
of a word of another pair.
"""


def words_of(text: str) -> tuple[str, ...]:
  """The words of a text, in order."""
  return tuple(text.split())


WORDS_BY_KIND = {
  kind: words_of(words)
  for kind, words in {
    "animal": "horse tiger rabbit camel donkey wolf goat sheep otter zebra mouse lion",
    "fruit": "apple banana cherry lemon melon grape plum apricot mango pear",
    "colour": "red green blue yellow purple brown white black pink grey",
    "clothes": "shirt jacket glove trousers scarf skirt coat sweater sock hat",
    "furniture": "table chair cupboard sofa bed shelf desk drawer bench stool",
    "tool": "hammer saw pliers shovel rake chisel wrench screwdriver axe drill",
    "vehicle": "car truck bicycle train bus tractor tram scooter van lorry",
    "body": "hand elbow knee shoulder finger ankle nose ear neck thumb",
    "music": "violin piano trumpet flute guitar harp cello clarinet banjo",
    "weather": "rain snow fog storm hail thunder wind frost sunshine drizzle",
    "building": "house castle church tower barn school hospital palace hut museum",
    "job": "baker teacher farmer doctor tailor plumber nurse lawyer painter butcher",
    "metal": "iron copper lead tin zinc steel brass nickel",
  }.items()
}

MORE = words_of("""
  river window letter garden summer winter morning evening bottle kitchen paper basket candle mirror
  pocket button carpet ladder blanket pillow hunger island forest meadow valley desert harbour
  bridge street corner market village journey ticket luggage holiday picture story number secret
  answer question promise reason moment minute circle square triangle shadow thought feather
  pebble lantern ribbon bucket kettle spoon saucer napkin pepper butter cheese biscuit honey
""")

OPPOSITES = tuple(
  tuple(pair.split("/"))
  for pair in words_of("""
  hot/cold big/small long/short fast/slow early/late full/empty rich/poor happy/sad old/young
  wet/dry loud/quiet light/dark strong/weak clean/dirty wide/narrow deep/shallow open/closed
  sweet/sour right/left good/bad easy/difficult up/down near/far alive/dead brave/cowardly
  sharp/blunt cheap/expensive safe/dangerous smooth/rough busy/idle polite/rude awake/asleep
  guilty/innocent public/private visible/hidden fresh/stale
  """)
)

WORDS = tuple(word for words in WORDS_BY_KIND.values() for word in words) + MORE
