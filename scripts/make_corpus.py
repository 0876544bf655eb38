#!/usr/bin/env python3
"""Writes the training text of the demo model (configs/demo-moe).

The text is a mix of short stories, sums, counting, small facts and ChatML conversations. All of it
is generated from the tables and templates below, so it is free to use and can be made again, byte
for byte, from the seed. Needs the standard library only.

    python3 scripts/make_corpus.py --out build/demo/corpus.txt

Documents are separated by <|endoftext|>. The 200 sums of heldout_sums.txt appear in no document, in
neither order and in no wording: they are what the model's accuracy is measured on.

Template language: `[a|b|c]` picks one alternative (they nest), `{name}` inserts a value, and
`{a_name}` inserts it with its article.
"""
import argparse
import random
import re
from pathlib import Path

EOT = "<|endoftext|>"

# ---- words of the stories ------------------------------------------------------------------------

GIRLS = ("Lily Mia Anna Sara Emma Zoe Ella Lucy Nora Ruby Ivy Rosie Clara Maya Daisy Molly Hana "
         "Amina Sofia Tara").split()
BOYS = ("Tom Ben Max Sam Leo Tim Jack Finn Oscar Noah Eli Hugo Omar Ravi Felix Theo Luca Adam "
        "Peter Milo").split()
SHE_ANIMALS = "Bella Coco Pepper Hazel Dot Willow Snowy Poppy Nutmeg Clover Maple Pearl".split()
HE_ANIMALS = "Pip Bruno Benny Rusty Toby Biscuit Teddy Bramble Sunny Patch Otto Basil".split()

HOMES = {  # kind of animal: where it lives, with the preposition
    "fox": "in a cozy den under an old oak tree",
    "rabbit": "in a warm burrow at the edge of the meadow",
    "bear": "in a cave on the side of the hill",
    "mouse": "in a tiny hole behind the red barn",
    "duck": "in a nest of reeds by the pond",
    "frog": "on a mossy bank beside the pond",
    "owl": "in a hollow tree in the middle of the forest",
    "squirrel": "in a nest high up in a pine tree",
    "hedgehog": "in a pile of dry leaves behind the garden",
    "kitten": "in a basket by the kitchen stove",
    "puppy": "in a red kennel beside the farmhouse",
    "turtle": "in a quiet corner of the river",
    "lion": "in a golden valley full of tall grass",
    "elephant": "in a wide green valley",
    "dragon": "in a castle in the blue mountains",
    "monkey": "in a tall tree in the jungle",
    "pony": "in a stable at the end of the lane",
    "beaver": "in a house of sticks by the river",
}
KID_HOMES = ["in a small house by the sea", "in a yellow house at the end of the street",
             "in a little cottage near the forest", "on a farm with a red barn",
             "in a tall house in the middle of the town",
             "in a village at the foot of the mountains",
             "in a white house on top of a hill", "in a house with a big garden"]
TRAITS = ["kind", "curious", "brave", "clever", "cheerful", "gentle", "friendly", "helpful",
          "shy", "playful", "quiet", "happy"]
LOVES = ["to explore", "to sing", "to dance", "to draw pictures", "to climb trees", "to tell jokes",
         "to look at the stars", "to listen to stories", "to play outside", "to collect shells",
         "to help other people", "to watch the clouds", "to pick flowers", "to ask questions"]
TOYS = ["red ball", "blue scarf", "toy boat", "silver bell", "wooden horse", "yellow hat",
        "little drum", "green kite", "teddy bear", "shiny whistle", "paper lantern", "warm blanket"]
PLACES = ["in the park", "in the forest", "in the meadow", "in the garden", "on the beach",
          "by the river", "on the hill", "in the field", "by the lake", "in the orchard",
          "at the playground", "by the pond", "in the village", "by the old mill"]
SEARCH = ["under the bed", "behind the door", "in the garden", "under the big tree", "by the river",
          "inside the old barn", "behind the bushes", "next to the well", "on the kitchen shelf",
          "under the wooden bench"]
TREATS = ["cookie", "red apple", "honey cake", "cherry pie", "pear", "sweet bun", "pancake",
          "slice of melon"]
FLYERS = ["red ball", "blue scarf", "green kite", "yellow hat", "white balloon", "paper plane"]
SKILLS = ["whistle", "juggle", "skate on the ice", "ride a scooter", "play the flute", "dance",
          "row a boat", "jump over the rope", "stand on one foot", "play the drum", "draw a horse"]
FRUITS = ["tomatoes", "strawberries", "pumpkins", "sunflowers", "carrots", "beans", "roses"]
DISHES = [("cake", "sugar"), ("loaf of bread", "flour"), ("pie", "apples"),
          ("pot of soup", "carrots"), ("pudding", "milk"), ("pancake", "eggs"),
          ("pizza", "cheese"), ("pot of stew", "potatoes")]
FRAGILE = ["blue vase", "white cup", "glass lamp", "flower pot", "clay bowl", "round mirror"]
CRAFTS = ["necklace of shells", "card with a big red heart", "crown of flowers", "wooden boat",
          "picture of the sea", "bracelet of beads", "small kite", "song about friendship"]
TREASURES = ["a pile of old coins", "a map of the stars", "a tiny music box", "a golden ring",
             "a letter from long ago", "a book full of stories", "a bag of colorful marbles"]
LOST_BABIES = [("duckling", "pond"), ("chick", "farm"), ("lamb", "field"),
               ("baby bird", "old tree"), ("piglet", "farm"), ("kitten", "barn"),
               ("baby rabbit", "meadow")]
STUCK = [("bird", "in a net"), ("bee", "in a spider's web"), ("butterfly", "under a heavy leaf"),
         ("lamb", "in a thorny bush"), ("fish", "in a shallow pool"), ("beetle", "on its back"),
         ("kitten", "at the top of a tree"), ("goat", "in a deep hole")]
NOISES = ["an old window in the wind", "a sleepy owl", "a branch that tapped on the glass",
          "a small mouse with a big nut", "the cat, who wanted to come in",
          "a leaf that danced on the roof", "a frog that was singing to the moon"]
MIXES = [("blue", "yellow", "green", "the trees"), ("red", "yellow", "orange", "the sunset"),
         ("red", "blue", "purple", "the flowers"), ("red", "white", "pink", "the roses"),
         ("black", "white", "gray", "the clouds")]
FIRST_DAY = ("[One|One|On a] [sunny|windy|warm|bright|cool|quiet|fine|cloudy]"
             " [morning|day|afternoon]")
LATER_DAY = ("[The next day|The next morning|A few days later|A week later|Soon after that"
             "|Some time later]")

OPENINGS = [
    "Once upon a time, there was {a_adj} {kind} named {n}. {n} lived {inhome}.",
    "Once upon a time, there was {a_adj} {kind} called {n} who lived {inhome}.",
    "Once upon a time, {inhome}, there lived {a_adj} {kind} named {n}.",
    "Once upon a time, {a_adj} {kind} named {n} lived {inhome}.",
    "Once upon a time, there lived {a_adj} {kind}. {P} name was {n}, and {p} home was {home}.",
    "There was once {a_adj} {kind} named {n}, who lived {inhome}.",
    "{n} was {a_adj} {kind}. {S} lived {inhome}.",
    "{Inhome} lived {a_adj} {kind} called {n}.",
    "This is the story of {n}, {a_adj} {kind} who lived {inhome}.",
    "Long ago, {a_adj} {kind} named {n} lived {inhome}.",
]
TRAIT_LINES = [
    "{n} was very {trait}, and {s} loved {love}.",
    "{S} loved {love} [more than anything else|all day long|every single day].",
    "{S} was {trait} and [always|almost always] had a smile on {p} face.",
    "Everyone [liked|loved] {n} because {s} was so {trait}.",
    "Every [morning|day], {n} [woke up early|got up with the sun] because {s} loved {love}.",
]
FRIEND_LINES = [
    "{P} best friend was {a_fadj} {fkind} named {f}.",
    "{S} had a [good|dear] friend named {f}, {a_fadj} {fkind}.",
    "{n} and {p} friend {f}, {a_fadj} {fkind}, did everything together.",
    "[Next door|Not far away] lived {f}, {a_fadj} {fkind}, who was {p} best friend.",
]
REFLECTIONS = [
    "[From that day on|From then on|After that day], {n} and {f} were"
    " [the best of friends|always kind to each other|never lonely again].",
    "{n} [learned|understood|never forgot] that {moral}.",
    "\"{Moral},\" said {n}, and {f} [agreed|nodded|smiled].",
]
CLOSINGS = [
    "And they all lived happily ever after.",
    "That night, {n} [fell asleep with a smile|went to bed tired but happy|dreamed of new"
    " adventures].",
    "It was [the best day of {p} life|a day that {n} would never forget|a very good day].",
    "{n} was [tired but happy|proud and happy|very happy], and so was {f}. The end.",
]

# Each episode: its moral and its sentences. `{day}` opens it; {n} and {f} are hero and friend,
# {par} is the hero's parent; the other values are drawn in Corpus.slots().
EPISODES = [
    ("friends help each other", """{day}, {n} could not find {p} {toy}. [{S} was very sad.|It was
    {p} favorite toy.|"Oh no!" said {n}. "Where can it be?"] {S} looked {where1}, but it was not
    there. {S} looked {where2}, but it was not there [either|]. [Then {f} came by.|{f} heard {o}
    crying and came over.] "[Do not worry|Do not cry], I will help you," said {f}. Together they
    searched everywhere. [At last|After a while|Finally], {f} found the {toy} {where3}. {n} hugged
    {p} friend. "Thank you, {f}!" {s} said. [They played with the {toy} until the sun went
    down.|They laughed and played all afternoon.]"""),
    ("two heads are better than one", """{day}, {n} and {f} were playing with {a_fly} {inplace}.
    [The wind began to blow.|{n} threw it very high.] The {fly} flew up and got stuck in a tall
    tree. "[Oh no|Oh dear]!" cried {n}. "[How will we get it back?|It is too high for us!]" {n}
    jumped and jumped, but {s} could not reach it. {f} shook the tree, but nothing [happened|fell
    down]. Then {n} had an idea. {S} climbed onto {f}'s back and [reached up|stretched] as far as
    {s} could. The {fly} fell down [into the soft grass|onto the ground]. "[We did it|Hooray]!" they
    shouted, and they danced around the tree."""),
    ("it is all right to be afraid", """One night, there was a big storm. The thunder went boom, and
    the rain [beat on the roof|fell in heavy drops|tapped on the window]. {n} was [scared|afraid]
    and could not sleep. {S} [pulled the blanket over {p} head|hid under the blanket|ran to {p}
    {par}]. {P} {par} came and sat beside {o}. "[The storm cannot hurt you here|You are safe with
    me]," said {p} {par}. "[The thunder is only a loud noise.|The rain is good for the flowers.]"
    They counted the seconds between the light and the sound. [Slowly|Little by little], the storm
    moved away. [When morning came, the sun was shining and there was a rainbow in the sky.|Soon {n}
    was fast asleep.]"""),
    ("a small kindness can change a whole day", """{day}, {n} was walking [near|past] the {place}
    when {s} heard a tiny voice. "[Help|Please help me]!" it cried. It was a little {stuck} that was
    stuck {stuckhow}. "[Stay calm|Do not be afraid]," said {n}. "I will [help you|set you free]."
    {S} [worked slowly and carefully|was very careful], and soon the {stuck} was free. "Thank you!"
    said the {stuck}. "[I will never forget this.|You have a kind heart.]" [The next day, the
    {stuck} came back to say hello.|{n} smiled and waved goodbye.] {f} [heard about it and was|was]
    very proud of {o}."""),
    ("sharing makes everything sweeter", """{day}, {n} and {f} found {a_treat} on [the table|a
    bench|a big stone]. "It is mine! I saw it first," said {n}. "No, it is mine!" said {f}. They
    [shouted|argued] and pulled until they were both angry. Then {n} saw that {f} had tears in {fp}
    eyes. {n} felt sorry. "[Wait|I am sorry]," {s} said. "We can share it." {S} cut the {treat} into
    two pieces and gave {f} the bigger one. {f} [smiled|began to smile]. "Thank you," said {f}. They
    sat [in the sun|under a tree|side by side] and ate, and the {treat} tasted [better than
    ever|wonderful]."""),
    ("practice makes everything easier", """{n} wanted to learn to {skill}. {day}, {s} tried for the
    first time. It was [much harder than it looked|not easy at all]. {S} tried again and again, but
    {s} could not do it. "[I will never learn this|This is too hard]," {s} said [sadly|with a sigh].
    {f} came to watch. "[Do not give up|Try once more]," said {f}. "[Nobody learns it in one day.|I
    had to practice for a long time, too.]" So {n} practiced every day. [After a week|After many
    days], something wonderful happened. {n} could {skill}! {P} {par} clapped and clapped. "[I knew
    you could do it|Well done], {n}!" said {f}."""),
    ("good things take time", """{day}, {n}'s {par} gave {o} a [small|tiny] bag of seeds. "If you
    take care of them, they will grow," said {p} {par}. {n} dug [a small hole|some holes] in the
    garden and put the seeds in the ground. {S} gave them water every morning. For many days,
    nothing happened. "[Maybe they are asleep,|Why do they not grow?]" said {n}. "Be patient," said
    {f}. Then, one morning, {n} saw a tiny green leaf. It grew [taller and taller|bigger every day].
    By the end of summer, the garden was full of {fruit}. {n} gave [some|the best ones] to {f}, and
    they were both very happy."""),
    ("it is good to have kind neighbors", """{day}, {n} and {p} {par} wanted to make {a_dish}. They
    washed their hands and got a big bowl. But there was a problem. There {waswere} no {missing}
    left in the kitchen! "What can we do now?" asked {n}. {S} thought for a moment, and then {s} ran
    to {f}. "[Do you have|Could you give us] some {missing}?" {s} asked. "[Of course|Yes, gladly],"
    said {f}, "and I would like to help." They mixed and stirred, and soon [the whole house smelled
    wonderful|everything was ready]. The {dish} was [warm and good|the best they had ever tasted].
    They ate it together, and there was enough for everyone."""),
    ("the best treasure is a good friend", """{day}, {n} found a small key [in the grass|in the
    sand|under a stone] near the {place}. It was old and [rusty|made of gold]. "[I wonder what it
    opens,|What does it open?]" {s} said. {S} showed it to {f}. They tried the key in [every
    door|the garden gate], but it did not fit. Then they found a little box {where1}. {n} put the
    key in the lock and turned it. Click! The box opened, and inside was {treasure}. "[It is
    beautiful|How wonderful]!" said {f}. "We found it together," said {n}, "so it belongs to both of
    us." They [put it in a safe place|showed it to {n}'s {par}] and smiled."""),
    ("everyone needs a home", """{day}, {n} and {f} heard a soft cry [by the road|behind a
    bush|{inplace}]. A little {baby} was sitting there all alone. "I am lost," it said. "I want to
    go home." "[Do not worry|Do not be sad]," said {n}. "Where do you live?" "I live [near|by] the
    {babyhome}," said the {baby}. {n} and {f} [knew the way|asked a wise old owl for the way]. They
    walked [over the hill|down the long road|across the bridge] until they could see the {babyhome}.
    The mother of the {baby} was waiting there. She was so happy that she [cried|jumped for joy].
    "Thank you for bringing my little one home," she said. {n} and {f} walked back hand in
    hand."""),
    ("helping is better than winning", """{day}, there was a big race {inplace}. {n} and {f} both
    wanted to win. "Ready, set, go!" called {n}'s {par}. {n} ran as fast as {s} could, and soon {s}
    was [in front|first]. But then {s} heard a [cry|shout]. {f} had fallen and hurt {fp} [leg|foot].
    {n} [looked at the finish line|stopped]. Then {s} turned around and went back to help. "[Why did
    you stop?|Why did you come back?]" asked {f}. "[You are more important than a race|I want to run
    with you]," said {n}. They [walked|went] over the line together, and everyone cheered for
    them."""),
    ("rain can be fun, too", """{n} and {f} planned a picnic {inplace}. They packed {a_treat}, some
    juice, and a big blanket. But [when they arrived|as soon as they sat down], dark clouds came,
    and it began to rain. "[Our picnic is ruined|Now everything is wet]," said {f}. {n} looked
    around. "[I have an idea|I know what to do]!" {s} said. They ran back to {n}'s home and put the
    blanket on the floor. They [sat under the table|built a little tent] and listened to the rain.
    It was [warm and dry|cozy] inside. They ate the {treat} and told each other funny stories.
    "[This is the best picnic ever|I like rainy days now]," said {f}."""),
    ("it is best to tell the truth", """{day}, {n} was [running|playing] inside, even though {p}
    {par} had told {o} not to. Crash! The {fragile} fell down and broke. {n} was afraid. "[Maybe
    nobody will notice|I could hide the pieces]," {s} thought. But {s} had a bad feeling in {p}
    tummy. {S} [went to|found] {p} {par} and told the truth. "I am sorry," {s} said. "I broke the
    {fragile}." {P} {par} was quiet for a moment. "[Thank you for telling me|I am glad that you told
    me the truth]," said {p} {par}. "[We can fix it together.|You are more important than
    {a_fragile}.]" They got some glue and put the pieces together, and {n} felt [much better|light
    and happy] again."""),
    ("the best gifts come from the heart", """It was almost {f}'s birthday. {n} wanted to give {fo}
    a present, but {s} had no money. "[What can I do|What shall I do]?" {s} asked {p} {par}. "You
    can make something," said {p} {par}. "[A gift that you make yourself is the best gift of
    all.|You are so good with your hands.]" So {n} sat down and [worked all day|got to work]. {S}
    made {a_craft}. On the birthday, {f} got many presents, but {fs} [kept {n}'s gift for
    last|opened {n}'s gift first]. {F} eyes grew wide. "[It is so beautiful|I love it]!" said {f}.
    "Did you make it for me?" {n} nodded, and {f} gave {o} a big hug."""),
    ("winter is warm when you have friends", """[It was a cold winter day.|One winter morning,
    everything was white.] The snow was [deep and soft|falling], and {n} wanted to make a snowman.
    {S} rolled a big ball of snow, and {f} rolled a smaller one. They gave the snowman two eyes of
    stone and a carrot for a nose. "He looks cold," said {n}. {S} took off {p} [own|warm] scarf and
    put it around the snowman's neck. {f} gave him {fp} hat. Now the snowman [looked happy|seemed to
    smile]. Then {n} and {f} began to shiver, so they ran inside. {n}'s {par} gave them hot
    [milk|soup|tea], and they watched the snowman through the window."""),
    ("where there is a will, there is a way", """{day}, {n} and {f} wanted to visit the other side
    of the river. But when they came to the bridge, it was broken. "[We have to go home|We cannot
    cross] now," said {f}. "Wait," said {n}. "[We can build a boat|Let us make a raft]." They
    collected [old wood|long branches] and tied everything together with a rope. They pushed it into
    the water and held on tight. It [rocked from side to side|moved slowly], but it did not sink. [A
    friendly fish showed them the way.|A friendly duck swam beside them.] Soon they were on the
    other side. "[We are real sailors|What an adventure]!" said {n}, and they both laughed."""),
    ("things are often less scary than they seem", """One night, {n} heard a strange noise. Tap,
    tap, tap! "[What was that|Who is there]?" {s} whispered. [It came again.|The noise did not
    stop.] {n}'s heart was beating fast. {S} called {f}, and together they took a [small
    lamp|lantern]. Step by step, they walked [toward the sound|through the dark]. "I am a little
    afraid," said {f}. "[Me too|So am I]," said {n}, "but we are together." {n} held up the light.
    It was only {noise}! They looked at each other and laughed [out loud|until their tummies hurt].
    "[There was nothing to fear|How silly we were]," said {n}."""),
    ("a smile can open any door", """{day}, {n} saw someone new {inplace}. It was a little {newkind}
    who was sitting all alone. The other children were playing, but nobody [asked the {newkind} to
    join|talked to the {newkind}]. {n} remembered [how it feels to be alone|{p} own first day
    there]. {S} walked over and smiled. "Hello, I am {n}," {s} said. "[Would you like to play with
    us|Do you want to play]?" The {newkind} looked up. "Yes, please!" {n}, {f}, and the {newkind}
    played [hide and seek|catch|games] all afternoon. [When it was time to go home, they promised to
    meet again.|By the evening, they were good friends.]"""),
    ("colors are like friends, better when they mix", """{day}, {n} was painting a big picture of
    the {place}. {S} wanted to paint {thing} {mixed}, but there was no {mixed} paint left. "[Now I
    cannot finish my picture|Oh no, it is all gone]," {s} said. {f} looked at the other pots. There
    was still some {col1} and some {col2}. "[Let us try something,|What happens if we mix them?]"
    said {f}. {n} put a little {col1} on a plate and added a little {col2}. They stirred and
    stirred. [Like magic|Look at that], it turned {mixed}! {n} painted {thing} with the new color,
    and the picture was [finished|beautiful]. They hung it on the wall for everyone to see."""),
    ("even when you are lost, you should stay calm", """{day}, {n} and {f} went for a walk in the
    forest. They followed a butterfly [deeper and deeper|farther and farther] into the trees. When
    they stopped, they did not know where they were. "[We are lost,|Which way is home?]" said {f} in
    a small voice. {n} took a deep breath. "[Listen|Be quiet for a moment]," {s} said. "I can hear
    the river. If we follow the water, we will find our way." They walked along the river [for a
    long time|step by step]. It was getting dark, and the first stars came out. Then they saw a
    light. It was {n}'s {par} with a lantern! "[I was so worried|There you are]!" said {p} {par} and
    hugged them both."""),
    ("a song is a gift for everyone", """There was going to be a big party {inplace}, and {n} was
    asked to sing. {n} sang very well, but only when {s} was alone. "[I cannot do it|Everyone will
    look at me]," {s} told {f}. "[Just look at me and forget the others|Close your eyes and think of
    something nice]," said {f}. On the day of the party, {n} stood in front of everyone. {P} legs
    were shaking. At first, {p} voice was very [soft|small]. Then {s} looked at {f}, who was
    smiling, and {s} began to sing [louder|with all {p} heart]. When the song was over, it was quiet
    for a moment. Then everyone clapped and [cheered|asked for more]."""),
    ("those who give will also receive", """It was winter, and there was little to eat. {n} had only
    one piece of bread left. {day}, a [thin|small] bird came and sat [at the window|on the fence].
    "[I have not eaten for days|I am so hungry]," said the bird. {n} was hungry, too, but {s} broke
    the bread in half and gave one piece to the bird. "Thank you," said the bird and flew away. {f}
    was surprised. "[Now you have even less,|Why did you do that?]" {fs} said. "[The bird needed it,
    too|It is nice to share]," said {n}. In the spring, the bird came back. It showed them a tree
    full of [sweet|ripe] cherries, and they ate until they were full."""),
    ("it helps to make a plan", """{day}, {n}'s {par} asked {o} to go to the market. "Please bring
    some {missing}, some milk, and {a_treat}," said {p} {par}. {n} took a basket and [went down the
    road|walked to town] with {f}. On the way, they [watched the ducks|picked flowers] and talked
    about many things. At the market, {n} stopped. "[I forgot what to buy!|What was on the list?]"
    {s} said. They thought hard. "We need something white to drink," said {f}. "Milk!" said {n}.
    "And something for the kitchen." "{Missing}!" said {f}. "And {a_treat} for us!" They laughed,
    put everything into the basket, and carried it home together."""),
    ("wishes come true when we work for them", """One night, {n} and {f} were lying in the grass and
    looking at the sky. A bright star fell [over the trees|behind the hills]. "Make a wish!" said
    {f}. {n} closed {p} eyes. {S} wished to {skill}. The next morning, {s} tried, but nothing had
    changed. "[The star did not help me|My wish did not come true]," said {n}. "[Maybe the star
    wants you to try|A star can only show you the way]," said {f}. So {n} tried every day, and {f}
    helped {o}. [Before the next full moon|When summer came], {n} could {skill} very well. That
    night, {s} looked up at the sky and [whispered thank you|smiled at the stars]."""),
    ("being small can be a great strength", """{day}, the [bigger|older] animals were moving a big
    log that lay across the road. {n} wanted to help. "[You are too small|You are not strong
    enough]," they said. {n} was sad, but {s} did not go away. {S} looked at the log very closely.
    There was a little stone under it, and that was why it did not move. Only someone small could
    reach it. {n} crawled under the log and [pulled out|pushed away] the stone. "Now try again!" {s}
    called. The log rolled away [at once|down the hill]. "[You were right, {n}|We are sorry, {n}],"
    said the others. {f} cheered the loudest of all."""),
    ("a promise should be kept", """{n} promised {f} to meet {fo} {inplace} [after lunch|in the
    afternoon]. But on the way, {n} saw a [puppet show|man with a big balloon] and stopped to watch.
    It was so [funny|exciting] that {s} forgot the time. When {s} remembered, the sun was low. {n}
    ran to the {place} as fast as {s} could. {f} was [still waiting|sitting there all alone]. "[I
    thought you were not coming,|Where have you been?]" said {f} sadly. "I am so sorry," said {n}.
    "I forgot my promise. I will not do it again." {f} [thought about it|was quiet for a while] and
    then smiled. "I forgive you," said {f}. They still had time for one [game|story] before
    dark."""),
]
EPISODES = [(moral, " ".join(text.split())) for moral, text in EPISODES]

# ---- tables of facts: (question, short answer, full sentence) ------------------------------------

CAPITALS = """France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Poland
Warsaw, Austria Vienna, Greece Athens, Norway Oslo, Sweden Stockholm, Finland Helsinki, Denmark
Copenhagen, Ireland Dublin, England London, Scotland Edinburgh, Belgium Brussels, Hungary
Budapest, Turkey Ankara, Russia Moscow, Japan Tokyo, China Beijing, India Delhi, Thailand Bangkok,
Egypt Cairo, Kenya Nairobi, Ghana Accra, Morocco Rabat, Canada Ottawa, Mexico Mexico_City, Cuba
Havana, Peru Lima, Chile Santiago, Brazil Brasilia, Argentina Buenos_Aires, Australia Canberra,
Switzerland Bern, Iceland Reykjavik, Iran Tehran, Iraq Baghdad, Nepal Kathmandu, Vietnam Hanoi,
Ukraine Kyiv, Romania Bucharest"""
OPPOSITES = """hot cold, big small, fast slow, day night, up down, left right, open closed, happy
sad, old young, high low, long short, light dark, full empty, wet dry, hard soft, loud quiet, rich
poor, strong weak, early late, good bad, black white, near far, clean dirty, thick thin, first
last, inside outside, start end, yes no, sweet sour, awake asleep, love hate, win lose, true
false"""
COLOURS = """sky blue, grass green, sun yellow, snow white, coal black, banana yellow, tomato red,
carrot orange, lemon yellow, strawberry red, leaf green, frog green, chocolate brown, night black,
flamingo pink, cherry red, elephant gray, milk white, blood red, cucumber green"""
SOUNDS = """cow moo, dog woof, cat meow, duck quack, sheep baa, pig oink, horse neigh, lion roar,
frog ribbit, bee buzz, snake hiss, owl hoot, rooster cock-a-doodle-doo, mouse squeak, chicken
cluck"""
BABIES = """dog puppy, cat kitten, cow calf, sheep lamb, horse foal, duck duckling, pig piglet,
bear cub, frog tadpole, goat kid, hen chick, deer fawn, swan cygnet, kangaroo joey, owl owlet"""
PLURALS = """cat cats, mouse mice, child children, foot feet, tooth teeth, goose geese, man men,
woman women, sheep sheep, box boxes, leaf leaves, city cities, dog dogs, bus buses, fox foxes"""
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = ("January February March April May June July August September October November "
          "December").split()
NUMBERS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
           "fifteen sixteen seventeen eighteen nineteen twenty").split()
OTHER_FACTS = [
    ("How many days are in a week?", "7", "There are 7 days in a week."),
    ("How many months are in a year?", "12", "There are 12 months in a year."),
    ("How many legs does a spider have?", "8", "A spider has 8 legs."),
    ("How many legs does an insect have?", "6", "An insect has 6 legs."),
    ("How many legs does a dog have?", "4", "A dog has 4 legs."),
    ("How many sides does a triangle have?", "3", "A triangle has 3 sides."),
    ("How many sides does a square have?", "4", "A square has 4 sides."),
    ("How many letters are in the alphabet?", "26", "There are 26 letters in the alphabet."),
    ("How many minutes are in an hour?", "60", "There are 60 minutes in an hour."),
    ("How many hours are in a day?", "24", "There are 24 hours in a day."),
    ("What do bees make?", "honey", "Bees make honey."),
    ("What do cows give us?", "milk", "Cows give us milk."),
    ("What do rabbits like to eat?", "carrots", "Rabbits like to eat carrots."),
    ("What is frozen water called?", "ice", "Frozen water is called ice."),
    ("What falls from clouds?", "rain", "Rain falls from clouds."),
    ("Where do fish live?", "in the water", "Fish live in the water."),
    ("Where do birds sleep?", "in a nest", "Birds sleep in a nest."),
    ("What is the largest ocean?", "the Pacific Ocean", "The Pacific Ocean is the largest ocean."),
    ("What is the largest animal?", "the blue whale", "The blue whale is the largest animal."),
    ("What is the tallest animal?", "the giraffe", "The giraffe is the tallest animal."),
    ("Which planet do we live on?", "Earth", "We live on Earth."),
    ("Which planet is called the red planet?", "Mars", "Mars is called the red planet."),
    ("What shines at night?", "the moon", "The moon shines at night."),
    ("What color do blue and yellow make?", "green", "Blue and yellow make green."),
    ("What color do red and yellow make?", "orange", "Red and yellow make orange."),
    ("What color do red and blue make?", "purple", "Red and blue make purple."),
    ("Which season comes after winter?", "spring", "Spring comes after winter."),
    ("Which season comes after spring?", "summer", "Summer comes after spring."),
    ("Which season comes after summer?", "autumn", "Autumn comes after summer."),
    ("Which season comes after autumn?", "winter", "Winter comes after autumn."),
]


def pairs(table):
    return [tuple(w.replace("_", " ") for w in row.split()) for row in table.split(",")]


def article(noun):
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def build_facts():
    facts = list(OTHER_FACTS)
    for a, b in pairs(CAPITALS):
        facts.append((f"What is the capital of {a}?", b, f"The capital of {a} is {b}."))
    for a, b in pairs(OPPOSITES):
        for x, y in ((a, b), (b, a)):
            facts.append((f"What is the opposite of {x}?", y, f"The opposite of {x} is {y}."))
    for a, b in pairs(COLOURS):
        if a in ("sky", "grass", "sun", "night"):
            thing = "the " + a
        else:
            thing = a if a in ("snow", "coal", "chocolate", "milk", "blood") else article(a)
        facts.append((f"What color is {thing}?", b, f"{thing[0].upper()}{thing[1:]} is {b}."))
    for a, b in pairs(SOUNDS):
        it = article(a)
        facts.append((f"What sound does {it} make?", b, f"{it.capitalize()} says {b}."))
    for a, b in pairs(BABIES):
        facts.append((f"What is a baby {a} called?", b, f"A baby {a} is called {article(b)}."))
    for a, b in pairs(PLURALS):
        facts.append((f"What is the plural of {a}?", b, f"The plural of {a} is {b}."))
    for what, names in (("day", DAYS), ("month", MONTHS)):
        for i, name in enumerate(names):
            then, ask = names[(i + 1) % len(names)], f"Which {what} comes"
            facts.append((f"{ask} after {name}?", then, f"{then} comes after {name}."))
            facts.append((f"{ask} before {then}?", name, f"{name} comes before {then}."))
    for a, b in zip(NUMBERS, NUMBERS[1:]):
        facts.append((f"Which number comes after {a}?", b, f"{b.capitalize()} comes after {a}."))
    return facts


# ---- generators ----------------------------------------------------------------------------------

class Corpus:
    """All document generators; they share one random stream and the held-out sums."""

    def __init__(self, rng, heldout, mix):
        self.rng = rng
        self.heldout = {frozenset(pair) for pair in heldout}
        self.facts, self.mix = build_facts(), mix

    def fill(self, template, values):
        """Expands [a|b] (innermost first), then {name}; tidies the spaces of empty alternatives."""
        while "[" in template:
            template = re.sub(r"\[([^\[\]]*)\]",
                              lambda m: self.rng.choice(m.group(1).split("|")).strip(), template)
        text = re.sub(r"\{(\w+)\}", lambda m: values[m.group(1)], template)
        text = re.sub(r" +([,.!?])", r"\1", re.sub(r" {2,}", " ", text))
        return re.sub(r"[?.]\?", "?", text)

    # Stories.

    def character(self, avoid=None, kind=None, name=None):
        """A name, a kind and pronouns: (name, kind, is_female, home)."""
        rng = self.rng
        if kind is None:
            kind = rng.choice(["girl", "boy", "girl", "boy"] + rng.sample(sorted(HOMES), 4))
        female = kind == "girl" or (kind != "boy" and rng.random() < 0.5)
        pool = {"girl": GIRLS, "boy": BOYS}.get(kind) or (SHE_ANIMALS if female else HE_ANIMALS)
        name = name or rng.choice([n for n in pool if n != avoid])
        return name, kind, female, HOMES.get(kind) or rng.choice(KID_HOMES)

    def slots(self, hero, friend):
        """The values that one episode may use."""
        rng = self.rng
        n, kind, she, _ = hero
        f, fkind, fshe, _ = friend
        where = rng.sample(SEARCH, 3)
        stuck, baby, dish, mix, place = map(rng.choice, (STUCK, LOST_BABIES, DISHES, MIXES, PLACES))
        adj = rng.choice(["little", "little", "small", "young"] + TRAITS[:8])
        v = {
            "n": n, "kind": kind, "f": f, "fkind": fkind, "s": "she" if she else "he",
            "S": "She" if she else "He", "o": "her" if she else "him", "p": "her" if she else "his",
            "P": "Her" if she else "His", "fs": "she" if fshe else "he",
            "fo": "her" if fshe else "him", "fp": "her" if fshe else "his",
            "F": "Her" if fshe else "His",
            "adj": adj, "fadj": rng.choice([a for a in ["little", "funny"] + TRAITS if a != adj]),
            "trait": rng.choice([t for t in TRAITS[:8] if t != adj]), "love": rng.choice(LOVES),
            "toy": rng.choice(TOYS), "fly": rng.choice(FLYERS), "treat": rng.choice(TREATS),
            "where1": where[0], "where2": where[1], "where3": where[2],
            "skill": rng.choice(SKILLS), "fruit": rng.choice(FRUITS), "dish": dish[0],
            "missing": dish[1], "Missing": dish[1].capitalize(), "fragile": rng.choice(FRAGILE),
            "craft": rng.choice(CRAFTS), "treasure": rng.choice(TREASURES),
            "stuck": stuck[0], "stuckhow": stuck[1], "baby": baby[0], "babyhome": baby[1],
            "waswere": "were" if dish[1].endswith("s") else "was",
            "inplace": place, "place": place.split(" the ")[1], "noise": rng.choice(NOISES),
            "newkind": rng.choice(["girl", "boy", "rabbit", "bear", "fox"]),
            "col1": mix[0], "col2": mix[1], "mixed": mix[2], "thing": mix[3],
        }
        for key in ("adj", "fadj", "toy", "fly", "treat", "dish", "fragile", "craft"):
            v["a_" + key] = article(v[key])
        return v

    def story(self, kind=None, name=None, episodes=None):
        rng = self.rng
        hero = self.character(kind=kind, name=name)
        friend = self.character(avoid=hero[0])
        v = self.slots(hero, friend)
        v.update(inhome=hero[3], Inhome=hero[3].capitalize(), home=hero[3].split(" ", 1)[1])
        opening = rng.choice(OPENINGS[:5] if rng.random() < 0.6 else OPENINGS)
        intro = [opening]
        if rng.random() < 0.6:
            intro.append(rng.choice(TRAIT_LINES))
        intro.append(rng.choice(FRIEND_LINES))
        paragraphs = [self.fill(" ".join(intro), v)]

        par = rng.choice(["mother", "father", "mom", "dad", "grandmother", "grandfather"])
        count = episodes or rng.choices([1, 2, 3, 5], [74, 18, 5, 3])[0]
        for i, (moral, text) in enumerate(rng.sample(EPISODES, count)):
            v.update(self.slots(hero, friend), par=par, moral=moral, Moral=moral.capitalize())
            v["day"] = self.fill(LATER_DAY if i else FIRST_DAY, v)
            paragraphs.append(self.fill(text, v))
        ending = rng.choice([[REFLECTIONS], [CLOSINGS], [REFLECTIONS, CLOSINGS]])
        paragraphs.append(self.fill(" ".join(rng.choice(lines) for lines in ending), v))
        if rng.random() < 0.3:  # some stories come as one paragraph
            return " ".join(paragraphs) + "\n"
        return "\n".join(paragraphs) + "\n"

    # Sums.

    def operands(self):
        rng = self.rng
        while True:
            if rng.random() < 0.1:
                a, b = rng.randint(0, 9), rng.randint(0, 99)
                if rng.random() < 0.5:
                    a, b = b, a
            else:
                a, b = rng.randint(0, 99), rng.randint(0, 99)
            if frozenset((a, b)) not in self.heldout:
                return a, b

    def sum_line(self):
        a, b = self.operands()
        return f"{a}+{b}={a + b}\n"

    def sum_question(self):
        a, b = self.operands()
        question = self.rng.choice([
            f"What is {a}+{b}?", f"What is {a}+{b}?", f"What is {a} plus {b}?",
            f"How much is {a}+{b}?", f"How much is {a} plus {b}?"])
        return question, str(a + b), f"{a}+{b}={a + b}"

    def sums(self):
        if self.rng.random() < 0.8:
            lines = self.rng.choice([1, 1, 2, 3, 4, 6, 8, 12])
            return "".join(self.sum_line() for _ in range(lines))
        return "".join("Q: %s A: %s\n" % self.sum_question()[:2]
                       for _ in range(self.rng.choice([1, 2, 3, 5])))

    # Counting.

    def count_task(self):
        """(request, answer) of one counting exercise."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.25:
            a = rng.choice([1, 1, 1, rng.randint(0, 10)])
            b = rng.randint(a + 2, 20)
            words = ", ".join(NUMBERS[a:b + 1])
            return f"Count from {NUMBERS[a]} to {NUMBERS[b]}", words
        a = rng.choice([1, 1, rng.randint(0, 9), rng.randint(0, 90)])
        b = a + rng.randint(2, 12)
        if kind < 0.75:
            return f"Count from {a} to {b}", ", ".join(map(str, range(a, b + 1)))
        if kind < 0.9:
            return f"Count down from {b} to {a}", ", ".join(map(str, range(b, a - 1, -1)))
        step = rng.choice([2, 5, 10])
        b = step * rng.randint(3, 10)
        return f"Count to {b} by {step}", ", ".join(map(str, range(step, b + 1, step)))

    def counting(self):
        kind = self.rng.random()
        if kind < 0.25:
            return ", ".join(NUMBERS[1:self.rng.choice([6, 11, 11, 13, 21])]) + "\n"
        if kind < 0.32:
            return ", ".join(self.rng.choice([DAYS, MONTHS])) + "\n"
        if kind < 0.40:
            return ", ".join(map(str, range(1, self.rng.choice([11, 21])))) + "\n"
        return "".join("%s: %s\n" % self.count_task() for _ in range(self.rng.choice([1, 1, 2, 3])))

    # Facts.

    def fact_lines(self):
        rng = self.rng
        chosen = rng.sample(self.facts, rng.choice([1, 2, 3, 4, 6]))
        if rng.random() < 0.15:
            return " ".join(f[2] for f in chosen) + "\n"
        return "".join(f"Q: {q} A: {a[0].upper()}{a[1:]}\n" for q, a, _ in chosen)

    # Conversations.

    def turn(self):
        """(user, assistant) of one conversation turn."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.34:
            # The answer repeats the sum: the digits are then where the model is used to find them.
            question, _, full = self.sum_question()
            return question if rng.random() < 0.7 else full[:full.index("=") + 1], full
        if kind < 0.66:
            question, _, full = rng.choice(self.facts)
            return question, full
        if kind < 0.80:
            request, answer = self.count_task()
            return request + ".", answer
        if kind < 0.85:
            return rng.choice([
                ("Hello!", "Hello! How can I help you?"),
                ("Hi!", "Hello! How can I help you?"),
                ("Hello", "Hello! How can I help you?"),
                ("Thank you!", "You are welcome!"),
                ("Who are you?", "I am a small demo model. I can tell stories, add numbers, count"
                                 " and answer simple questions."),
                ("What can you do?", "I can tell stories, add two numbers, count and answer simple"
                                     " questions."),
                ("How are you?", "I am fine, thank you!"),
                ("Goodbye!", "Goodbye! Have a nice day!"),
            ])
        request, kwargs = rng.choice([
            ("Tell me a story.", {}), ("Tell me a short story.", {}), ("Write a short story.", {}),
            ("Please tell me a story.", {}), ("KIND", {}), ("KIND", {}), ("KIND", {}), ("NAME", {}),
        ])
        if request in ("KIND", "NAME"):
            kind = rng.choice(["girl", "boy"] + (sorted(HOMES) if request == "KIND" else []))
            kwargs = {"kind": kind}
            tale = f"[Tell me|Write] a story about {article(kind)}"
            if request == "NAME":
                kwargs["name"] = rng.choice(GIRLS if kind == "girl" else BOYS)
                tale += f" named {kwargs['name']}"
            request = self.fill(tale + ".", {})
        return request, self.story(episodes=1, **kwargs).strip()

    def chat(self):
        rng = self.rng
        text = ""
        if rng.random() < 0.3:
            text = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            user, assistant = self.turn()
            text += f"<|im_start|>user\n{user}<|im_end|>\n"
            text += f"<|im_start|>assistant\n{assistant}<|im_end|>\n"
        return text

    def document(self):
        makers = [self.story, self.sums, self.fact_lines, self.counting, self.chat]
        return self.rng.choices(makers, self.mix)[0]()


def draw_heldout(rng, count):
    every = [(a, b) for a in range(100) for b in range(a, 100)]
    return [(b, a) if rng.random() < 0.5 else (a, b) for a, b in rng.sample(every, count)]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument("--out", type=Path, default=Path("build/demo/corpus.txt"))
    ap.add_argument("--heldout", type=Path, default=Path("configs/demo-moe/heldout_sums.txt"))
    ap.add_argument("--megabytes", type=float, default=36.0, help="size of the text (default 36)")
    ap.add_argument("--mix", default="22,70,10,4,16",
                    help="weights of stories, sums, facts, counting and conversations"
                         " (default %(default)s)")
    ap.add_argument("--seed", type=int, default=1)
    args = ap.parse_args()

    heldout = draw_heldout(random.Random(1001), 200)  # the same for every --seed
    args.heldout.parent.mkdir(parents=True, exist_ok=True)
    args.heldout.write_text("".join(f"{a}+{b}={a + b}\n" for a, b in heldout))

    corpus = Corpus(random.Random(args.seed), heldout, [int(w) for w in args.mix.split(",")])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    written = docs = 0
    with args.out.open("w", encoding="utf-8", newline="\n") as out:
        while written < args.megabytes * 1e6:
            written += out.write(corpus.document() + EOT)
            docs += 1
    print(f"{args.out}: {docs} documents, {written} characters")
    print(f"{args.heldout}: {len(heldout)} sums")


if __name__ == "__main__":
    main()
